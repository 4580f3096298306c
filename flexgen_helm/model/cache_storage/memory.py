"""Storage of keys, or of values, in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from flexgen_helm.model.cache_format import CacheFormat, Rows
from flexgen_helm.model.cache_storage.rows import copy_slots, store_rows, write_rows
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.offload.records import RecordLayout


class MemoryStorage:
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
    def stored(self) -> MemoryStorage:
        return self

    def write(self, cells: RowCells, rows: Tensor) -> None:
        write_rows(self._format, self._rows, cells.on(self._device), rows.to(self._device))

    def store(self, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        store_rows(self._rows, cells.on(self._device), tensors)

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        copy_slots(self._rows, start, source, slots, length)

    def end_prefill(self) -> None:
        pass

    def begin_read(self) -> int:
        return 0

    def forget_read(self) -> None:
        pass

    @contextmanager
    def read(self) -> Iterator[Rows]:
        yield self._rows
