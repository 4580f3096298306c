"""Rooms: where a pool keeps the keys, or the values, of one layer.

Shape letters: b sequences, t cached positions, h heads, d head size, e model width, n rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flexgen_helm.model.cache_format import CacheFormat, Rows, tensors_of
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.offload.spill import RecordLayout, Spill, SpillRegion
from flexgen_helm.specs.placement import Tier

LENT_POSITIONS = 16
"""Later positions are lent in multiples of this many: libraries keep half a megabyte for every
shape of a product they have met, so a shape that grows with each token would cost memory."""


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

    def write(self, cells: RowCells, rows: Tensor) -> None:
        """Store those of the rows [n, e] that have a cell here."""

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        """Store the first positions of some slots of another room, in slots from `start` on."""

    def end_prefill(self) -> None:
        """Be told that from now on each sequence gets one position at a time."""

    def begin_read(self) -> None:
        """Begin what `read` will wait for."""

    def read(self) -> AbstractContextManager[Rows]:
        """Lend all positions of all slots, [b, t] and what the format makes of a position.

        What lies beyond a sequence's own length is finite, and means nothing.
        """


class MemoryRoom:
    """In the memory of a device.

    Args:
        cache_format: how positions are stored.
        num_slots: b.
        capacity: t.
        device: whose memory.
    """

    def __init__(
        self, cache_format: CacheFormat, num_slots: int, capacity: int, device: torch.device
    ) -> None:
        layouts = cache_format.layout(num_slots, capacity)
        pinned = cache_format.device.type == "cuda" and device.type == "cpu"
        tensors = [
            torch.zeros(x.shape, dtype=x.dtype, device=device, pin_memory=pinned) for x in layouts
        ]
        self._format = cache_format
        self._device = device
        self._rows = cache_format.rows(tensors)

    def write(self, cells: RowCells, rows: Tensor) -> None:
        _write(self._format, self._rows, cells.on(self._device), rows.to(self._device))

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        _copy(self._rows, start, source, slots, length)

    def end_prefill(self) -> None:
        pass

    def begin_read(self) -> None:
        pass

    @contextmanager
    def read(self) -> Iterator[Rows]:
        yield self._rows


class DiskRoom:
    """On disk: what prefill stores, in one record, and one of all slots for each position after it.

    What is read is what has been written.

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
        self._prefilled: Tensor | None = None
        """What prefill has stored so far, in memory."""
        self._region: SpillRegion | None = None
        """Where it all is once prefill has ended."""
        self._later: list[RowCells] = []
        """Where the rows of the later records belong."""

    @property
    def num_later(self) -> int:
        """Positions of each slot that have been written after prefill."""
        return len(self._later)

    def write(self, cells: RowCells, rows: Tensor) -> None:
        cells, rows = cells.on(_CPU), rows.to(_CPU)
        if self._region is not None:
            self._append(self._region, cells, rows)
            return
        _write(self._format, self._prefill(), cells, rows)

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        _copy(self._prefill(), start, source, slots, length)

    def end_prefill(self) -> None:
        if self._region is not None:
            return
        self._prefill()  # where sequences have no prompt of their own, nothing has been written
        assert self._prefilled is not None
        one_each = tensors_of(
            self._format.compress(
                torch.zeros(
                    self._num_slots, self._format.spec.hidden_size, dtype=self._format.dtype
                )
            )
        )
        later_bytes = self._size.num_later * RecordLayout.of(one_each).num_bytes
        self._region = self._spill.region(self._first.num_bytes + later_bytes)
        self._region.append(self._first, self._prefilled)
        self._prefilled = None

    def begin_read(self) -> None:
        if self._region is not None:
            self._region.begin_read()

    @contextmanager
    def read(self) -> Iterator[Rows]:
        buffer = self._spill.buffers.take(self._layout.num_bytes)
        rows = self._format.rows(self._layout.views(buffer))
        with self.read_parts() as (first, *later):
            for tensor, stored in zip(tensors_of(rows), tensors_of(first), strict=True):
                tensor[:, : self._size.num_prefilled] = stored
                tensor[:, self._size.num_prefilled :] = 0  # what is read must be finite
            for part in later:
                _place(part, self._later, rows)
        try:
            yield rows
        finally:
            self._spill.buffers.give(buffer)

    @contextmanager
    def read_parts(self) -> Iterator[list[Rows]]:
        """Lend what prefill has stored [b, t] and, if there is any, what came after it [b, later].

        The latter ends with positions that are finite and mean nothing, see `LENT_POSITIONS`.
        This takes a third of the time of `read`: the former is lent as it was read.
        """
        assert self._region is not None, "what is being prefilled is not read"
        with self._region.read() as (first, *later):
            prefilled = self._format.rows(first)
            if not later:
                yield [prefilled]
                return
            # As large as it will be: the same buffer serves for every token.
            buffer = self._spill.buffers.take(self._later_layout(self._size.num_later).num_bytes)
            num_lent = min(-(-len(later) // LENT_POSITIONS) * LENT_POSITIONS, self._size.num_later)
            tensors = self._later_layout(num_lent).views(buffer)
            self._format.join(later, tensors)
            try:
                yield [prefilled, self._format.rows(tensors)]
            finally:
                self._spill.buffers.give(buffer)

    def _later_layout(self, num_positions: int) -> RecordLayout:
        return RecordLayout(self._format.layout(self._num_slots, num_positions))

    def _prefill(self) -> Rows:
        """Return what is in memory until prefill ends."""
        if self._prefilled is None:
            self._prefilled = self._spill.buffers.take(self._first.num_bytes)
            self._prefilled.zero_()  # what is never written is read, and must be finite
        return self._format.rows(self._first.views(self._prefilled))

    def _append(self, region: SpillRegion, cells: RowCells, rows: Tensor) -> None:
        by_slot = cells.by_slot(rows, self._num_slots)
        region.append_copy(tensors_of(self._format.compress(by_slot)))
        self._later.append(cells)


_CPU = torch.device("cpu")


def make_room(cache_format: CacheFormat, tier: Tier, num_slots: int, size: RoomSize) -> Room:
    """Return room on a tier."""
    if tier is Tier.DISK:
        assert cache_format.spill is not None, "a cache on disk comes with a spill"
        return DiskRoom(cache_format, num_slots, size, cache_format.spill)
    return MemoryRoom(cache_format, num_slots, size.capacity, cache_format.memory_of(tier))


def _write(cache_format: CacheFormat, room: Rows, cells: RowCells, rows: Tensor) -> None:
    if isinstance(room, Tensor):
        cells.spread(rows.unflatten(1, room.shape[2:]), room)
        return
    stored = cache_format.compress(cells.rows_of(rows))
    for tensor, part in zip(tensors_of(room), tensors_of(stored), strict=True):
        cells.store(part, tensor)


def _place(part: Rows, later: Sequence[RowCells], room: Rows) -> None:
    """Put positions that came one by one [b, later] in the cells where they belong."""
    for tensor, column in zip(tensors_of(room), tensors_of(part), strict=True):
        for index, cells in enumerate(later):
            cells.store(column[cells.slots, index], tensor)


def _copy(room: Rows, start: int, source: Rows, slots: Tensor, length: int) -> None:
    for tensor, other in zip(tensors_of(room), tensors_of(source), strict=True):
        tensor[start : start + len(slots), :length] = other[slots.to(other.device), :length]
