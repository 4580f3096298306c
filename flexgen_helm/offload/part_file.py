"""The tensors of a part in one file: safetensors, its data aligned for reads past the page cache.

The format allows blanks behind the header, which move the data to a multiple of `ALIGNMENT`. The
header's metadata say what the file was made from, and the CRC-32 of each tensor.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from flexgen_helm.errors import StoreError

ALIGNMENT = 4096
"""Direct reads begin at multiples of the disk's block size; this is one of all in use."""

_LENGTH_BYTES = 8
_UNKNOWN = "00000000"

_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


class Entry(NamedTuple):
    """What a tensor looks like."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class Region(NamedTuple):
    """Where a tensor is in its file, and its checksum."""

    entry: Entry
    offset: int
    """From the beginning of the file, in bytes."""

    checksum: int
    """CRC-32 of its bytes."""

    @property
    def end(self) -> int:
        return self.offset + self.entry.num_bytes


class PartFile(NamedTuple):
    """A file that is there, whole."""

    path: Path
    identity: str
    """What it was made from, and how."""

    regions: Mapping[str, Region]
    """Tensors by name, in the order of their bytes."""

    @classmethod
    def open(cls, path: Path) -> PartFile:
        """Read the header.

        Raises:
            StoreError: there is no such file, or it was not made by `PartWriter`.
        """
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
                header = json.loads(stream.read(min(length, path.stat().st_size)))
            metadata = header.pop("__metadata__")
            checksums = json.loads(metadata["crc32"])
            regions = {
                name: _region(tensor, _LENGTH_BYTES + length, checksums[name])
                for name, tensor in sorted(header.items(), key=lambda x: x[1]["data_offsets"])
            }
            identity = metadata["identity"]
            end = max((region.end for region in regions.values()), default=0)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{path} is no part of a weight store ({error!r}): {_REMEDY}"
            ) from error
        if (size := path.stat().st_size) != end:
            raise StoreError(f"{path} has {size} bytes instead of {end}: {_REMEDY}")
        return cls(path, identity, regions)


_REMEDY = "delete the store's directory and convert the checkpoint again"


class PartWriter:
    """Writes a part tensor by tensor, each in as many pieces as the caller likes.

    Args:
        path: file to make.
        entries: what will be written.
        identity: what it is made from, and how.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], identity: str) -> None:
        self._entries = entries
        self._identity = identity
        self._checksums = dict.fromkeys(entries, _UNKNOWN)
        header = self._header()
        self._next: dict[str, int] = {}
        offset = len(header)
        for name in _by_alignment(entries):
            self._next[name] = offset
            offset += entries[name].num_bytes
        self._ends = {name: start + entries[name].num_bytes for name, start in self._next.items()}
        self._stream = path.open("wb")

    def write(self, name: str, rows: Tensor) -> None:
        """Append rows to a tensor."""
        assert rows.dtype == self._entries[name].dtype, name
        data = rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        assert self._next[name] + len(data) <= self._ends[name], f"{name} is longer than announced"
        self._stream.seek(self._next[name])
        self._stream.write(data)
        self._next[name] += len(data)
        self._checksums[name] = f"{zlib.crc32(data, int(self._checksums[name], 16)):08x}"

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stream:
            if error is None:
                assert self._next == self._ends, "some tensor was not written to its end"
                self._stream.seek(0)
                self._stream.write(self._header())

    def _header(self) -> bytes:
        """All there is to know about the tensors; its length does not depend on checksums."""
        tensors: dict[str, object] = {}
        offset = 0
        for name in _by_alignment(self._entries):
            entry = self._entries[name]
            tensors[name] = {
                "dtype": _DTYPE_NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [offset, offset + entry.num_bytes],
            }
            offset += entry.num_bytes
        metadata = {"identity": self._identity, "crc32": json.dumps(self._checksums)}
        text = json.dumps({"__metadata__": metadata, **tensors}).encode()
        padded = text.ljust(
            -(-(_LENGTH_BYTES + len(text)) // ALIGNMENT) * ALIGNMENT - _LENGTH_BYTES
        )
        return len(padded).to_bytes(_LENGTH_BYTES, "little") + padded


def _by_alignment(entries: Mapping[str, Entry]) -> list[str]:
    """Names in an order in which every tensor begins where its dtype may: wide numbers first.

    Among those, large tensors come first, as their sizes are multiples of a cache line.
    """
    return sorted(entries, key=lambda n: (-entries[n].dtype.itemsize, -entries[n].num_bytes, n))


def _region(tensor: Mapping[str, list[int]], data_start: int, checksum: str) -> Region:
    entry = Entry(_DTYPES[str(tensor["dtype"])], tuple(tensor["shape"]))
    start, _ = tensor["data_offsets"]
    return Region(entry, data_start + start, int(checksum, 16))
