"""Parts of weights that are brought to where they are computed with, one ahead of its use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from flexgen_helm.errors import StoreError
from flexgen_helm.offload.disk import DiskReader, aligned_buffer
from flexgen_helm.offload.disk_part import DiskPart, PartRead
from flexgen_helm.offload.link import Lane, Link, Mark, Transit
from flexgen_helm.offload.waiting import Waiting

T = TypeVar("T")


class PartsAhead(Protocol):
    """Brings parts one after another; what it returns is valid until the next one is taken."""

    def take(self, name: str) -> dict[str, Tensor]:
        """Return a part's tensors where they are computed with, and begin with the next part.

        Whoever takes a part has given all to compute that reads the one before.

        Raises:
            StoreError: the disk cannot be read, or what it holds has changed.
        """
        ...

    def close(self) -> None:
        """Wait for what is under way, and give back the memory."""
        ...


class _OneAhead(Generic[T]):
    """Begins parts in the order of use, each when the one before it is taken.

    Args:
        order: their names; the first follows the last.
        begin: begins one.
        discard: waits for one that was begun in vain, as what it goes to is needed.
        overlap: whether any is begun before it is taken.
    """

    def __init__(
        self,
        order: Sequence[str],
        begin: Callable[[str], T],
        discard: Callable[[T], object],
        *,
        overlap: bool,
    ) -> None:
        self._order, self._begin, self._discard = order, begin, discard
        self._overlap = overlap
        self._ahead: tuple[str, T] | None = None

    def take(self, name: str) -> T:
        """Return what was begun of a part, and begin the next one."""
        if self._ahead is not None and self._ahead[0] != name:
            self.drop()
        begun = self._begin(name) if self._ahead is None else self._ahead[1]
        self._ahead = None
        if self._overlap:
            # Before anybody waits, so that the disk has more to do when this one ends.
            following = self._order[(self._order.index(name) + 1) % len(self._order)]
            self._ahead = following, self._begin(following)
        return begun

    @contextmanager
    def using(self) -> Iterator[None]:
        """Forget what is ahead where a part cannot be had: it may have failed with it."""
        try:
            yield
        except StoreError:
            self.drop()
            raise

    def drop(self) -> None:
        """Let what is ahead come to its end, if anything is; nobody needs it, or its error."""
        if self._ahead is not None:
            (_, begun), self._ahead = self._ahead, None
            with suppress(StoreError):
                self._discard(begun)


class PartsFromDisk:
    """Reads parts into one of two staging buffers, from which they are used.

    Args:
        parts: what of each is on disk, in the order of use.
        reader: what reads it.
        overlap: whether the next part is read while one is used.
        waiting: told of waits for the disk.
    """

    def __init__(
        self,
        parts: Mapping[str, DiskPart],
        reader: DiskReader,
        *,
        overlap: bool,
        waiting: Waiting,
    ) -> None:
        self._parts, self._reader, self._waiting = parts, reader, waiting
        size = max((part.num_bytes for part in parts.values()), default=0)
        self._buffers = [aligned_buffer(size) for _ in range(2 if size else 0)]
        self._ahead = _OneAhead(list(parts), self._begin, PartRead.wait, overlap=overlap)

    def take(self, name: str) -> dict[str, Tensor]:
        reading = self._ahead.take(name)
        with self._ahead.using(), self._waiting.for_disk():
            return reading.finish()

    def close(self) -> None:
        self._buffers.clear()

    def _begin(self, name: str) -> PartRead:
        self._buffers.reverse()
        return PartRead(self._parts[name], self._buffers[0], self._reader)


class OffDevice(NamedTuple):
    """What of a part is not on the device."""

    on_host: DiskPart
    in_memory: Tensor
    """Its bytes, as read."""

    on_disk: DiskPart

    @property
    def num_bytes(self) -> int:
        return self.on_host.num_bytes + self.on_disk.num_bytes


@dataclass(eq=False)
class _Staging:
    """Memory for a part on its way: the device's for all of it, the host's for what is on disk."""

    on_device: Tensor
    on_host: Tensor
    reading: list[Transit] = field(default_factory=list)
    """Copies that read the host's memory."""


class _Upload(NamedTuple):
    """A part that was begun to be copied."""

    tensors: dict[str, Tensor]
    copies: list[Transit]


class PartsToDevice:
    """Copies parts into one of two staging buffers of the device.

    A part passes the link in two copies at most: of what is in the host's memory, and of what comes
    from the disk, through pinned memory.

    Args:
        parts: what of each is not on the device, in the order of use.
        reader: what reads the disk.
        link: what copies.
        device: whose memory the parts go to.
        overlap: whether the next part is brought while one is used.
        waiting: told of waits for the disk.
    """

    def __init__(
        self,
        parts: Mapping[str, OffDevice],
        reader: DiskReader,
        link: Link,
        device: torch.device,
        *,
        overlap: bool,
        waiting: Waiting,
    ) -> None:
        self._parts, self._reader, self._link, self._waiting = parts, reader, link, waiting
        whole = max((part.num_bytes for part in parts.values()), default=0)
        on_disk = max((part.on_disk.num_bytes for part in parts.values()), default=0)
        self._staging = [
            _Staging(
                on_device=torch.empty(whole, dtype=torch.uint8, device=device),
                on_host=link.buffer(on_disk),
            )
            for _ in range(2 if whole else 0)
        ]
        self._ahead = _OneAhead(list(parts), self._begin, _await_upload, overlap=overlap)

    def take(self, name: str) -> dict[str, Tensor]:
        upload = self._ahead.take(name)
        used = self._parts[name].on_disk.num_bytes > 0
        with self._ahead.using(), self._waiting.for_disk(used=used):
            tensors, copies = upload.result()
        for copy in copies:
            copy.use()
        return tensors

    def close(self) -> None:
        self._ahead.drop()
        self._staging.clear()

    def _begin(self, name: str) -> Future[_Upload]:
        self._staging.reverse()
        staging, mark = self._staging[0], self._link.mark()
        return self._link.beside(Lane.WEIGHTS, lambda: self._bring(name, staging, mark))

    def _bring(self, name: str, staging: _Staging, unused: Mark) -> _Upload:
        """Copy a part to staging buffers that nothing reads after a mark."""
        part = self._parts[name]
        middle, end = part.on_host.num_bytes, part.num_bytes
        host, disk = staging.on_device[:middle], staging.on_device[middle:end]
        copies = []
        if middle:
            copies.append(self._link.fill(host, part.in_memory[:middle], unused))
        while staging.reading:
            staging.reading.pop().wait()
        if end > middle:
            PartRead(part.on_disk, staging.on_host, self._reader).finish()
            staging.reading = [self._link.fill(disk, staging.on_host[: end - middle], unused)]
        tensors = part.on_host.views(host) | part.on_disk.views(disk)
        return _Upload(tensors, copies + staging.reading)


def _await_upload(upload: Future[_Upload]) -> None:
    for copy in upload.result().copies:
        copy.wait()
