"""A part of the weights on disk, and its tensors on their way into a buffer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from torch import Tensor

from flexgen_helm.errors import StoreError
from flexgen_helm.offload.disk import DiskReader, aligned_down, aligned_up
from flexgen_helm.offload.part_file import PartFile, Region
from flexgen_helm.processor import num_cores


class _Extent(NamedTuple):
    """Bytes of a file that are read at once."""

    start: int
    stop: int


class DiskPart:
    """Some regions of a file, and the bytes that are read to get them."""

    def __init__(self, file: PartFile, regions: Mapping[str, Region]) -> None:
        self.file = file
        self.regions = regions
        self.starts: dict[_Extent, int] = {}
        """Where each extent goes in a buffer."""
        self.num_bytes = 0
        for extent in _merged(list(regions.values())):
            self.starts[extent] = self.num_bytes
            self.num_bytes += extent.stop - extent.start
        self.checked = False
        """Whether the checksums have been compared: once is enough."""

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return the tensors in a buffer with the bytes read, sharing its memory."""
        return {
            name: self._bytes(region, buffer).view(region.entry.dtype).view(region.entry.shape)
            for name, region in self.regions.items()
        }

    def check(self, buffer: Tensor) -> None:
        """Compare checksums, unless that has been done.

        Raises:
            StoreError: something else was read than was written.
        """
        if self.checked:
            return
        data = [self._bytes(region, buffer).numpy().data for region in self.regions.values()]
        with ThreadPoolExecutor(num_cores()) as threads:  # one of zlib reads a gigabyte a second
            found = [*threads.map(zlib.crc32, data)]
        for (name, region), checksum in zip(self.regions.items(), found, strict=True):
            if checksum != region.checksum:
                raise StoreError(
                    f"tensor {name!r} in {self.file.path} is not what was written: the disk"
                    " or the file is damaged, delete the store and convert the checkpoint again"
                )
        self.checked = True

    def _bytes(self, region: Region, buffer: Tensor) -> Tensor:
        [extent] = [e for e in self.starts if e.start <= region.offset and region.end <= e.stop]
        start = self.starts[extent] + region.offset - extent.start
        return buffer[start : start + region.entry.num_bytes]


class PartRead:
    """A part on its way into a buffer.

    Args:
        part: what is read.
        buffer: of at least the part's `num_bytes`, made by `aligned_buffer`.
        reader: what reads it; it has begun when the constructor returns.
    """

    def __init__(self, part: DiskPart, buffer: Tensor, reader: DiskReader) -> None:
        self.part = part
        self._buffer = buffer
        self._futures: list[Future[None]] = []
        for extent, start in part.starts.items():
            target = buffer[start : start + extent.stop - extent.start]
            self._futures += reader.read(part.file.path, extent.start, target)

    def finish(self) -> dict[str, Tensor]:
        """Wait for all of it, and return the tensors, which share the buffer's memory.

        Raises:
            StoreError: the disk cannot be read, or what it holds has changed.
        """
        self.wait()
        self.part.check(self._buffer)
        return self.part.views(self._buffer)

    def wait(self) -> None:
        """Wait for all of it.

        Raises:
            StoreError: the disk cannot be read.
        """
        wait(self._futures)  # also where one has failed: the others go on writing to the buffer
        for future in self._futures:
            future.result()


def _merged(regions: Sequence[Region]) -> list[_Extent]:
    """Aligned extents that hold all regions, in one piece where they touch."""
    extents: list[_Extent] = []
    for region in sorted(regions, key=lambda region: region.offset):
        start, stop = aligned_down(region.offset), aligned_up(region.end)
        if extents and start <= extents[-1].stop:
            extents[-1] = _Extent(extents[-1].start, stop)
        else:
            extents.append(_Extent(start, stop))
    return extents
