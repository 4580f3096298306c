"""Storage of keys, or of values, on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from flexgen_helm.model.cache_format import HOST, CacheFormat, Rows, tensors_of
from flexgen_helm.model.cache_storage.base import StorageSize
from flexgen_helm.model.cache_storage.rows import copy_slots, place_later, store_rows, write_rows
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.offload.records import RecordLayout
from flexgen_helm.offload.spill import Spill, SpillRegion
from flexgen_helm.specs.chunks import RUN_LEN


class DiskStorage:
    """On disk: what prefill stores, in one record, then runs, then a record for each last position.

    What is read is what has been written. Each record has all slots.

    Args:
        cache_format: how positions are stored.
        num_slots: b.
        size: t, and how much of it is written when.
        spill: the file.
    """

    def __init__(
        self, cache_format: CacheFormat, num_slots: int, size: StorageSize, spill: Spill
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
    def stored(self) -> DiskStorage:
        return self

    def write(self, cells: RowCells, rows: Tensor) -> None:
        if self._region is None:
            write_rows(self._format, self._prefill(), cells, rows)
        else:
            self._append(self._region, cells, self._format.tensors(cells.rows_of(rows)))

    def store(self, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        if self._region is None:
            store_rows(self._prefill(), cells.on(HOST), tensors)
        else:
            self._append(self._region, cells.on(HOST), tensors)

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        copy_slots(self._prefill(), start, source, slots, length)

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
                place_later(part, cells, rows)
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
