"""Storage of keys, or of values, behind the link to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from torch import Tensor

from flexgen_helm.model.cache_format import HOST, CacheFormat, Rows
from flexgen_helm.model.cache_storage.disk import DiskStorage
from flexgen_helm.model.cache_storage.memory import MemoryStorage
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.offload.link import Lane, Link, Transit
from flexgen_helm.offload.linked_read import LinkedRead


class LinkedStorage:
    """Storage of the host's, or on disk, for a device with memory of its own.

    What is written passes the link as it is stored, and nobody waits for it; what is read is on its
    way since `begin_read`.

    Args:
        cache_format: how positions are stored.
        storage: where they are.
        link: between it and the device.
    """

    def __init__(
        self, cache_format: CacheFormat, storage: MemoryStorage | DiskStorage, link: Link
    ) -> None:
        self._format, self._storage, self._link = cache_format, storage, link
        self._unfinished: list[Future[None]] = []
        """What is being stored."""
        self._read = LinkedRead[Future[list[Transit]]](link, storage.num_bytes)

    @property
    def stored(self) -> MemoryStorage | DiskStorage:
        if self._read.begun:  # in vain, and it reads what is stored
            for copy in self._read.take(self._begin).result():
                copy.wait()
        while self._unfinished:
            self._unfinished.pop(0).result()
        return self._storage

    def write(self, cells: RowCells, rows: Tensor) -> None:
        self.store(cells, self._format.tensors(cells.rows_of(rows)))

    def store(self, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        assert not self._read.begun, "what is on its way is not all there is"
        copies, there = [self._link.down(tensor) for tensor in tensors], cells.on(HOST)
        self._store_beside(lambda: self._storage.store(there, [copy.wait() for copy in copies]))

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        self.stored.copy(start, source, slots, length)

    def end_prefill(self) -> None:
        self._store_beside(self._storage.end_prefill)

    def begin_read(self) -> int:
        return self._read.begin(self._begin)

    def forget_read(self) -> None:
        if not self._read.begun:  # otherwise it is the device's
            self._storage.forget_read()

    @contextmanager
    def read(self) -> Iterator[Rows]:
        loading = self._read.take(self._begin)
        with self._link.waiting.for_disk(used=isinstance(self._storage, DiskStorage)):
            copies = loading.result()
        yield self._format.rows([copy.use() for copy in copies])

    def _begin(self) -> Future[list[Transit]]:
        unfinished = self._unfinished
        self._unfinished = [store for store in unfinished if not store.done()]

        def load() -> list[Transit]:
            for store in unfinished:
                store.result()
            with self._storage.read() as rows:
                tensors = self._format.side_by_side(rows)
                copies = [self._link.up(tensor, Lane.CACHE) for tensor in tensors]
                if isinstance(self._storage, DiskStorage):  # whose memory others will use
                    for copy in copies:
                        copy.wait()
            return copies

        return self._link.beside(Lane.CACHE, load)

    def _store_beside(self, work: Callable[[], None]) -> None:
        self._unfinished.append(self._link.beside(Lane.STORE, work))
