"""Rooms: where a pool keeps the keys, or the values, of one layer.

Shape letters: b sequences, t cached positions, h heads, d head size, e model width, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import islice, pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flexgen_helm.model.cache_format import HOST, CacheFormat, Rows, tensors_of
from flexgen_helm.model.row_cells import RowCells, run_bounds
from flexgen_helm.offload.link import Lane, Link, Transit
from flexgen_helm.offload.linked_read import LinkedRead
from flexgen_helm.offload.records import RecordLayout
from flexgen_helm.offload.spill import Spill, SpillRegion
from flexgen_helm.specs.chunks import RUN_LEN
from flexgen_helm.specs.placement import Tier


class RoomSize(NamedTuple):
    """Positions of each slot of a room."""

    num_prefilled: int
    """Written in prefill, at most."""

    num_later: int
    """Written after it, one at a time, at most."""

    capacity: int
    """t, of the longest at its end: no more than the other two together, as one slot may have
    much of the one and another much of the other."""


class Room(Protocol):
    """Room for [b, t] positions."""

    @property
    def stored(self) -> Room:
        """The room that has all that was written so far, without a link in between."""

    def write(self, cells: RowCells, rows: Tensor) -> None:
        """Store those of the rows [n, e] that have a cell here."""

    def store(self, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        """Store what the format makes of such rows, in the order of their cells."""

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        """Store the first positions of some slots of another room, in slots from `start` on."""

    def end_prefill(self) -> None:
        """Be told that from now on each sequence gets one position at a time."""

    def begin_read(self) -> int:
        """Begin what `read` will wait for; return the bytes of memory this takes."""

    def forget_read(self) -> None:
        """Give up the host's memory of what was begun to be read."""

    def read(self) -> AbstractContextManager[Rows]:
        """Lend all positions of all slots, [b, t] and what the format makes of a position.

        What lies beyond a sequence's own length is finite, and means nothing.
        """


class MemoryRoom:
    """In memory.

    Args:
        cache_format: how positions are stored.
        record: the tensors of all slots.
        device: whose memory it is.
        take_memory: takes it, finite everywhere, when it is written or read first.
    """

    def __init__(
        self,
        cache_format: CacheFormat,
        record: RecordLayout,
        device: torch.device,
        take_memory: Callable[[], Sequence[Tensor]],
    ) -> None:
        self._format, self._device = cache_format, device
        self._take_memory = take_memory
        self.num_bytes = record.num_bytes
        """Of all positions."""

    @cached_property
    def _rows(self) -> Rows:
        return self._format.rows(self._take_memory())

    @property
    def stored(self) -> MemoryRoom:
        return self

    def write(self, cells: RowCells, rows: Tensor) -> None:
        _write(self._format, self._rows, cells.on(self._device), rows.to(self._device))

    def store(self, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        _store(self._rows, cells.on(self._device), tensors)

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        _copy(self._rows, start, source, slots, length)

    def end_prefill(self) -> None:
        pass

    def begin_read(self) -> int:
        return 0

    def forget_read(self) -> None:
        pass

    @contextmanager
    def read(self) -> Iterator[Rows]:
        yield self._rows


class DiskRoom:
    """On disk: what prefill stores, in one record, then runs, then a record for each last position.

    What is read is what has been written. Each record has all slots.

    Args:
        cache_format: how positions are stored.
        num_slots: b.
        size: t, and how much of it is written when.
        spill: the file.
    """

    def __init__(
        self, cache_format: CacheFormat, num_slots: int, size: RoomSize, spill: Spill
    ) -> None:
        self._format = cache_format
        self._spill = spill
        self._num_slots = num_slots
        self._size = size
        self._layout = RecordLayout(cache_format.layout(num_slots, size.capacity))
        self._first = RecordLayout(cache_format.layout(num_slots, size.num_prefilled))
        self._run = RecordLayout(cache_format.layout(num_slots, min(RUN_LEN, size.num_later)))
        self._position = RecordLayout(cache_format.position_layout(num_slots))
        self._num_runs = 0
        self._prefilled: Tensor | None = None
        """What prefill has stored so far, in memory."""
        self._region: SpillRegion | None = None
        """Where it all is once prefill has ended."""
        self._later: list[RowCells] = []
        """Where each position that came after prefill belongs."""

    @property
    def num_bytes(self) -> int:
        """Of all positions, as they are read."""
        return self._layout.num_bytes

    @property
    def stored(self) -> DiskRoom:
        return self

    def write(self, cells: RowCells, rows: Tensor) -> None:
        if self._region is None:
            _write(self._format, self._prefill(), cells, rows)
        else:
            self._append(self._region, cells, self._format.tensors(cells.rows_of(rows)))

    def store(self, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        if self._region is None:
            _store(self._prefill(), cells.on(HOST), tensors)
        else:
            self._append(self._region, cells.on(HOST), tensors)

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        _copy(self._prefill(), start, source, slots, length)

    def end_prefill(self) -> None:
        if self._region is not None:
            return
        self._prefill()  # where sequences have no prompt of their own, nothing has been written
        assert self._prefilled is not None
        later_bytes = self._size.num_later * self._position.num_bytes
        self._region = self._spill.region(self._first.num_bytes + later_bytes)
        self._region.append(self._first, self._prefilled)
        self._prefilled = None

    def begin_read(self) -> int:
        begun = 0 if self._region is None else self._region.begin_read()
        return begun + self._run.num_bytes if begun else 0  # a run is put in order beside it

    def forget_read(self) -> None:
        if self._region is not None:
            self._region.forget_read()

    @contextmanager
    def read(self) -> Iterator[Rows]:
        buffer = self._spill.buffers.take(self._layout.num_bytes)
        rows = self._format.rows(self._layout.views(buffer))
        with self.read_parts() as (first, *later):
            for tensor, stored in zip(tensors_of(rows), tensors_of(first), strict=True):
                tensor[:, : stored.shape[1]] = stored
                tensor[:, stored.shape[1] :] = 0  # what is read must be finite
            cells = iter(self._later)
            for part in later:
                _place(part, cells, rows)
        try:
            yield rows
        finally:
            self._spill.buffers.give(buffer)

    @contextmanager
    def read_parts(self) -> Iterator[list[Rows]]:
        """Lend what prefill has stored, and what came after it in parts of at most `RUN_LEN`.

        This takes a third of the time of `read`: all but the last part is lent as it was read.
        """
        assert self._region is not None, "what is being prefilled is not read"
        with self._region.read() as records:
            in_order = 1 + self._num_runs
            num_last = len(records) - in_order
            assert num_last <= RUN_LEN, "what is there is read before each position is written"
            parts = [self._format.rows(record) for record in records.until(in_order)]
            if not num_last:
                yield parts
                return
            buffer = self._spill.buffers.take(self._run.num_bytes)
            layout = RecordLayout(self._format.layout(self._num_slots, num_last))
            tensors = layout.views(buffer)
            self._format.join(records.stacked(in_order), tensors)
            try:
                yield [*parts, self._format.rows(tensors)]
            finally:
                if num_last < RUN_LEN:
                    self._spill.buffers.give(buffer)
                else:
                    self._region.replace_last(RUN_LEN, self._run, buffer)
                    self._num_runs += 1

    def _prefill(self) -> Rows:
        """Return what is in memory until prefill ends."""
        if self._prefilled is None:
            self._prefilled = self._spill.buffers.take(self._first.num_bytes)
            self._prefilled.zero_()  # what is never written is read, and must be finite
        return self._format.rows(self._first.views(self._prefilled))

    def _append(self, region: SpillRegion, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        """Write a position of each slot that has a cell, and zeros of the others."""
        by_slot = [cells.by_slot(tensor, self._num_slots) for tensor in tensors]
        region.append_copy(self._position, by_slot)
        self._later.append(cells)


class LinkedRoom:
    """A room of the host's, or on disk, for a device with memory of its own.

    What is written passes the link as it is stored, and nobody waits for it; what is read is on its
    way since `begin_read`.

    Args:
        cache_format: how positions are stored.
        room: where they are.
        link: between it and the device.
    """

    def __init__(self, cache_format: CacheFormat, room: MemoryRoom | DiskRoom, link: Link) -> None:
        self._format, self._room, self._link = cache_format, room, link
        self._unfinished: list[Future[None]] = []
        """What is being stored."""
        self._read = LinkedRead[Future[list[Transit]]](link, room.num_bytes)

    @property
    def stored(self) -> MemoryRoom | DiskRoom:
        if self._read.begun:  # in vain, and it reads the room
            for copy in self._read.take(self._begin).result():
                copy.wait()
        while self._unfinished:
            self._unfinished.pop(0).result()
        return self._room

    def write(self, cells: RowCells, rows: Tensor) -> None:
        self.store(cells, self._format.tensors(cells.rows_of(rows)))

    def store(self, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        assert not self._read.begun, "what is on its way is not all there is"
        copies, there = [self._link.down(tensor) for tensor in tensors], cells.on(HOST)
        self._store_beside(lambda: self._room.store(there, [copy.wait() for copy in copies]))

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        self.stored.copy(start, source, slots, length)

    def end_prefill(self) -> None:
        self._store_beside(self._room.end_prefill)

    def begin_read(self) -> int:
        return self._read.begin(self._begin)

    def forget_read(self) -> None:
        if not self._read.begun:  # otherwise it is the device's
            self._room.forget_read()

    @contextmanager
    def read(self) -> Iterator[Rows]:
        loading = self._read.take(self._begin)
        with self._link.waiting.for_disk(used=isinstance(self._room, DiskRoom)):
            copies = loading.result()
        yield self._format.rows([copy.use() for copy in copies])

    def _begin(self) -> Future[list[Transit]]:
        unfinished = self._unfinished
        self._unfinished = [store for store in unfinished if not store.done()]

        def load() -> list[Transit]:
            for store in unfinished:
                store.result()
            with self._room.read() as rows:
                tensors = self._format.side_by_side(rows)
                copies = [self._link.up(tensor, Lane.CACHE) for tensor in tensors]
                if isinstance(self._room, DiskRoom):  # whose memory others will use
                    for copy in copies:
                        copy.wait()
            return copies

        return self._link.beside(Lane.CACHE, load)

    def _store_beside(self, work: Callable[[], None]) -> None:
        self._unfinished.append(self._link.beside(Lane.STORE, work))


def make_room(cache_format: CacheFormat, tier: Tier, num_slots: int, size: RoomSize) -> Room:
    """Return room on a tier."""
    link = cache_format.link
    room: MemoryRoom | DiskRoom
    if tier is Tier.DISK:
        assert cache_format.spill is not None, "a cache on disk comes with a spill"
        room = DiskRoom(cache_format, num_slots, size, cache_format.spill)
    else:
        layouts = cache_format.layout(num_slots, size.capacity)
        record = RecordLayout(layouts)
        if tier is Tier.HOST and link is not None:
            # Pinned when it is needed, by the thread that stores, while the device computes.
            room = MemoryRoom(
                cache_format, record, HOST, lambda: record.views(link.buffer(record.num_bytes))
            )
        else:
            device = cache_format.device
            tensors = [torch.zeros(x.shape, dtype=x.dtype, device=device) for x in layouts]
            room = MemoryRoom(cache_format, record, device, lambda: tensors)
    return room if link is None or tier is Tier.DEVICE else LinkedRoom(cache_format, room, link)


def _write(cache_format: CacheFormat, room: Rows, cells: RowCells, rows: Tensor) -> None:
    if isinstance(room, Tensor):
        cells.spread(rows.unflatten(1, room.shape[2:]), room)
    else:
        cache_format.store(cells.rows_of(rows), cells.slots, cells.positions, room)


def _store(room: Rows, cells: RowCells, tensors: Sequence[Tensor]) -> None:
    """Put rows as they are stored, in the order of their cells, where they belong."""
    if isinstance(room, Tensor):
        tensors = [rows.unflatten(1, room.shape[2:]) for rows in tensors]
    for tensor, part in zip(tensors_of(room), tensors, strict=True):
        cells.store(part, tensor)


def _place(part: Rows, later: Iterator[RowCells], room: Rows) -> None:
    """Put positions that came one by one [b, t] in the next cells, where they belong."""
    columns = tensors_of(part)
    for index, cells in enumerate(islice(later, columns[0].shape[1])):
        for tensor, column in zip(tensors_of(room), columns, strict=True):
            cells.store(column[cells.slots, index], tensor)


def _copy(room: Rows, start: int, source: Rows, slots: Tensor, length: int) -> None:
    numbers = slots.numpy(force=True)
    bounds = run_bounds(numbers[None], [[1]])
    for tensor, other in zip(tensors_of(room), tensors_of(source), strict=True):
        # A run of slots at a time, without a copy in between: tens of megabytes for each room,
        # among what threads allocate, can make the heap grow by all of them.
        for begin, end in pairwise(bounds):
            first = int(numbers[begin])
            stored = other[first : first + end - begin, :length]
            tensor[start + begin : start + end, :length].copy_(stored)
