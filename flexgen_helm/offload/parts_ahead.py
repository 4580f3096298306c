"""Parts of weights that are brought to where they are computed with, one ahead of its use."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flexgen_helm.offload.disk import DiskReader, aligned_buffer
from flexgen_helm.offload.link import Lane, Link, Mark, Transit
from flexgen_helm.offload.reading import DiskPart, Reading
from flexgen_helm.offload.waiting import Waiting


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
        self._parts, self._reader = parts, reader
        self._overlap, self._waiting = overlap, waiting
        size = max((part.num_bytes for part in parts.values()), default=0)
        self._buffers = [aligned_buffer(size) for _ in range(2 if size else 0)]
        self._ahead: Reading | None = None

    def take(self, name: str) -> dict[str, Tensor]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.part is not self._parts[name]:
            ahead.wait()  # read in vain; its buffer is needed
            ahead = None
        reading = ahead or self._begin(name)
        if self._overlap:
            # Before waiting, so that the disk has more to do when this one ends.
            self._ahead = self._begin(_following(self._parts, name))
        with self._waiting.for_disk():
            return reading.finish()

    def close(self) -> None:
        self._buffers.clear()

    def _begin(self, name: str) -> Reading:
        self._buffers.reverse()
        return Reading(self._parts[name], self._buffers[0], self._reader)


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
        self._parts, self._reader, self._link = parts, reader, link
        self._overlap, self._waiting = overlap, waiting
        whole = max((part.num_bytes for part in parts.values()), default=0)
        on_disk = max((part.on_disk.num_bytes for part in parts.values()), default=0)
        self._staging = [
            _Staging(
                on_device=torch.empty(whole, dtype=torch.uint8, device=device),
                on_host=link.buffer(on_disk),
            )
            for _ in range(2 if whole else 0)
        ]
        self._ahead: tuple[str, Future[_Upload]] | None = None

    def take(self, name: str) -> dict[str, Tensor]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] != name:
            ahead[1].result()  # brought in vain; its staging buffer is needed
            ahead = None
        _, upload = ahead or self._begin(name)
        if self._overlap:
            self._ahead = self._begin(_following(self._parts, name))
        on_disk = self._parts[name].on_disk.num_bytes > 0
        with self._waiting.for_disk() if on_disk else nullcontext():
            tensors, copies = upload.result()
        for copy in copies:
            copy.use()
        return tensors

    def close(self) -> None:
        if self._ahead is not None:
            for copy in self._ahead[1].result().copies:
                copy.wait()
        self._staging.clear()

    def _begin(self, name: str) -> tuple[str, Future[_Upload]]:
        self._staging.reverse()
        staging, mark = self._staging[0], self._link.mark()
        bring = self._link.beside(Lane.WEIGHTS, lambda: self._bring(name, staging, mark))
        return name, bring

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
            Reading(part.on_disk, staging.on_host, self._reader).finish()
            staging.reading = [self._link.fill(disk, staging.on_host[: end - middle], unused)]
        tensors = part.on_host.views(host) | part.on_disk.views(disk)
        return _Upload(tensors, copies + staging.reading)


def _following(parts: Mapping[str, object], name: str) -> str:
    order = list(parts)
    return order[(order.index(name) + 1) % len(order)]
