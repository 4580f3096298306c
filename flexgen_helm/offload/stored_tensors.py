"""Tensors in memory, on the host or on disk, and back where they were computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from torch import Tensor

from flexgen_helm.offload.link import Lane, Link, Transit
from flexgen_helm.offload.linked_read import LinkedRead
from flexgen_helm.offload.records import RecordLayout
from flexgen_helm.offload.spill import Spill


class StoredTensors(Protocol):
    """Tensors kept somewhere."""

    def begin_read(self) -> int:
        """Begin what `read` will wait for; return the bytes of memory this takes."""
        ...

    def read(self) -> Sequence[Tensor]:
        """Return them where they were computed.

        Raises:
            StoreError: the disk cannot be used.
        """
        ...


class InMemory:
    """Where they were computed."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def begin_read(self) -> int:
        return 0

    def read(self) -> Sequence[Tensor]:
        return self._tensors


class OnHost:
    """In the host's memory, for a device with memory of its own.

    Args:
        tensors: of the device.
        link: to it.
        brief: whether they are kept for a short time, in memory that others get after them.
    """

    def __init__(self, tensors: Sequence[Tensor], link: Link, *, brief: bool = False) -> None:
        layout = RecordLayout.of(tensors)
        places: Sequence[Tensor | None] = [None] * len(tensors)
        if not brief:
            places = layout.views(link.buffer(layout.num_bytes))
        self._stored = [
            link.down(tensor, into=place) for tensor, place in zip(tensors, places, strict=True)
        ]
        self._read = LinkedRead[list[Transit]](link, layout.num_bytes)

    def begin_read(self) -> int:
        return self._read.begin(self._begin)

    def read(self) -> Sequence[Tensor]:
        return [copy.use() for copy in self._read.take(self._begin)]

    def _begin(self) -> list[Transit]:
        return [copy.back(Lane.CACHE) for copy in self._stored]


def spill_tensors(tensors: Sequence[Tensor], spill: Spill, link: Link | None) -> StoredTensors:
    """Begin to write tensors to disk.

    Args:
        tensors: of what computes.
        spill: the file.
        link: to what computes; `None` where it has the host's memory.

    Raises:
        StoreError: the disk cannot be used.
    """
    return _Spilled(tensors, spill) if link is None else _SpilledBehindLink(tensors, spill, link)


class _Spilled:
    def __init__(self, tensors: Sequence[Tensor], spill: Spill) -> None:
        layout = RecordLayout.of(tensors)
        self._region = spill.region(layout.num_bytes)
        self._region.append_copy(layout, tensors)

    def begin_read(self) -> int:
        return self._region.begin_read()

    def read(self) -> Sequence[Tensor]:
        with self._region.read() as [tensors]:
            return [tensor.clone() for tensor in tensors]


class _SpilledBehindLink:
    """Of a device with memory of its own: threads do what has to wait."""

    def __init__(self, tensors: Sequence[Tensor], spill: Spill, link: Link) -> None:
        layout = RecordLayout.of(tensors)
        self._link, self._region = link, spill.region(layout.num_bytes)
        copies = [link.down(tensor) for tensor in tensors]

        def store() -> None:
            self._region.append_copy(layout, [copy.wait() for copy in copies])

        self._stored = link.beside(Lane.STORE, store)
        self._read = LinkedRead[Future[list[Transit]]](link, layout.num_bytes)

    def begin_read(self) -> int:
        return self._read.begin(self._begin)

    def read(self) -> Sequence[Tensor]:
        loading = self._read.take(self._begin)
        with self._link.waiting.for_disk():
            copies = loading.result()
        return [copy.use() for copy in copies]

    def _begin(self) -> Future[list[Transit]]:
        return self._link.beside(Lane.CACHE, self._load)

    def _load(self) -> list[Transit]:
        self._stored.result()
        with self._region.read() as [tensors]:
            copies = [self._link.up(tensor, Lane.CACHE) for tensor in tensors]
            for copy in copies:  # before the memory is used again
                copy.wait()
        return copies
