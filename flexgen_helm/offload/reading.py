"""Tensors of a part on their way from disk into a buffer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from torch import Tensor

from flexgen_helm.errors import StoreError
from flexgen_helm.offload.disk import DiskReader, aligned_down, aligned_up
from flexgen_helm.offload.part_file import PartFile, Region


class _Extent(NamedTuple):
    """Bytes of a file that are read at once."""

    start: int
    stop: int


class DiskPart:
    """Some regions of a file, and the bytes that are read to get them."""

    def __init__(self, file: PartFile, regions: Mapping[str, Region]) -> None:
        self.file = file
        self.regions = regions
        self.extents = _merged(list(regions.values()))
        self.checked = False
        """Whether the checksums have been compared: once is enough."""

    @property
    def num_bytes(self) -> int:
        return sum(extent.stop - extent.start for extent in self.extents)


class Reading:
    """A part on its way into a buffer.

    Args:
        part: what is read.
        buffer: of at least the part's `num_bytes`, made by `aligned_buffer`.
        reader: what reads it; it has begun when the constructor returns.
    """

    def __init__(self, part: DiskPart, buffer: Tensor, reader: DiskReader) -> None:
        self.part = part
        self._buffer = buffer
        self._starts: dict[_Extent, int] = {}
        self._futures: list[Future[None]] = []
        position = 0
        for extent in part.extents:
            self._starts[extent] = position
            stop = position + extent.stop - extent.start
            self._futures += reader.read(part.file.path, extent.start, buffer[position:stop])
            position = stop

    def finish(self) -> dict[str, Tensor]:
        """Wait for all of it, and return the tensors, which share the buffer's memory."""
        self.wait()
        data = {name: self._bytes(region) for name, region in self.part.regions.items()}
        if not self.part.checked:
            self._check(data)
            self.part.checked = True
        return {
            name: data[name].view(region.entry.dtype).view(region.entry.shape)
            for name, region in self.part.regions.items()
        }

    def wait(self) -> None:
        """Wait for all of it.

        Raises:
            StoreError: the disk cannot be read.
        """
        for future in self._futures:
            future.result()

    def _bytes(self, region: Region) -> Tensor:
        [extent] = [e for e in self._starts if e.start <= region.offset and region.end <= e.stop]
        start = self._starts[extent] + region.offset - extent.start
        return self._buffer[start : start + region.entry.num_bytes]

    def _check(self, data: Mapping[str, Tensor]) -> None:
        for name, region in self.part.regions.items():
            if zlib.crc32(data[name].numpy().data) != region.checksum:
                raise StoreError(
                    f"tensor {name!r} in {self.part.file.path} is not what was written: the disk"
                    " or the file is damaged, delete the store and convert the checkpoint again"
                )


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
