"""A weight store: a directory with a file for each part of a model, and a manifest.

The manifest is written last. A directory without one is a conversion that was interrupted: parts
that are there are whole, as each gets its name when it is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen_helm.errors import StoreError
from flexgen_helm.files import write_text_atomically
from flexgen_helm.offload.part_file import Entry, PartFile
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.specs.compression import DEFAULT_GROUP_SIZE, Compression

MANIFEST = "store.json"
FORMAT = 1
"""Raised when a store of an older version can no longer be read."""

COMPONENTS = ("codes", "scale", "zero")
"""What a quantized tensor is stored as; names in the file are ``fc1.codes`` and so on."""


@dataclass(frozen=True, kw_only=True)
class StoreIdentity:
    """What a store was made from and how; two stores of one identity hold the same."""

    fingerprint: str
    """Of the checkpoint."""

    weight_bits: int | None
    group_size: int
    """Of quantized weights; where there are none, always the same."""

    dtype: str
    """Of what is not quantized."""

    format: int = FORMAT

    @classmethod
    def of(cls, fingerprint: str, compression: Compression, dtype: str) -> StoreIdentity:
        """Return that of a checkpoint; how the cache is compressed makes no difference."""
        bits = compression.weight_bits
        return cls(
            fingerprint=fingerprint,
            weight_bits=bits,
            group_size=DEFAULT_GROUP_SIZE if bits is None else compression.group_size,
            dtype=dtype,
        )

    @property
    def text(self) -> str:
        """One line that tells it from any other."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def directory_name(self) -> str:
        """A name for a directory, readable and as good as unique."""
        bits = "none" if self.weight_bits is None else f"w{self.weight_bits}-g{self.group_size}"
        return f"{self.fingerprint[:16]}-{bits}-{self.dtype}-v{self.format}"


class WeightStore:
    """A whole store.

    Args:
        directory: where it is.
        identity: what it must have been made from.

    Raises:
        StoreError: it is not there, damaged, or made from something else.
    """

    def __init__(self, directory: Path, identity: StoreIdentity) -> None:
        self.directory = directory
        self.identity = identity
        manifest = _read_manifest(directory)
        if manifest["identity"] != asdict(identity):
            raise StoreError(
                f"{directory} was made from {manifest['identity']}, not from {asdict(identity)}:"
                " delete it, or convert the checkpoint into another directory"
            )
        self._row_lens: Mapping[str, int] = manifest["row_lens"]
        self.part_names: Sequence[str] = manifest["parts"]

    @staticmethod
    def is_whole(directory: Path) -> bool:
        """Whether a conversion into this directory has come to its end."""
        try:
            _read_manifest(directory)
        except StoreError:
            return False
        return True

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts as stored."""
        return sum(self._sizes(name).total() for name in self.part_names)

    @property
    def linear_bytes(self) -> int:
        """Bytes of the matrices compression acts on."""
        sizes = [self._sizes(name) for name in self.part_names]
        return sum(part[name] for part in sizes for name in self.linear_names)

    @property
    def linear_names(self) -> Set[str]:
        """Names of these matrices in each layer."""
        return self._row_lens.keys()

    def linear_sizes(self, part: str) -> dict[str, int]:
        """Bytes of these matrices in a part."""
        sizes = self._sizes(part)
        return {name: sizes[name] for name in self.linear_names if name in sizes}

    def part(self, name: str) -> PartFile:
        """Open a part.

        Raises:
            StoreError: it is missing or damaged.
        """
        file = PartFile.open(part_path(self.directory, name))
        if file.identity != self.identity.text:
            raise StoreError(
                f"{file.path} belongs to another store: delete {self.directory} and convert the"
                " checkpoint again"
            )
        return file

    def assemble(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | QuantizedTensor]:
        """Put components of quantized tensors together; others stay as they are."""
        assembled: dict[str, Tensor | QuantizedTensor] = {}
        for name, tensor in tensors.items():
            base = tensor_of(name)
            if base == name:
                assembled[name] = tensor
            elif base not in assembled:
                codes, scale, zero = (tensors[f"{base}.{c}"] for c in COMPONENTS)
                assembled[base] = self._quantized(base, codes, scale, zero)
        return assembled

    def _sizes(self, part: str) -> Counter[str]:
        """Bytes of each tensor of a part, components together."""
        sizes: Counter[str] = Counter()
        for name, region in self.part(part).regions.items():
            sizes[tensor_of(name)] += region.entry.num_bytes
        return sizes

    def _quantized(self, name: str, codes: Tensor, scale: Tensor, zero: Tensor) -> QuantizedTensor:
        assert self.identity.weight_bits is not None, "a store of quantized weights says so"
        return QuantizedTensor(
            codes=codes,
            scale=scale,
            zero=zero,
            bits=self.identity.weight_bits,
            group_size=self.identity.group_size,
            row_len=self._row_lens[name],
        )


def tensor_of(region: str) -> str:
    """Name of the tensor a region belongs to: that of all components of a quantized one."""
    base, _, last = region.rpartition(".")
    return base if last in COMPONENTS else region


def write_manifest(
    directory: Path, identity: StoreIdentity, *, parts: Iterable[str], row_lens: Mapping[str, int]
) -> None:
    """Declare a store whole.

    Args:
        directory: of the store.
        identity: what it was made from.
        parts: names of all parts.
        row_lens: of the matrices compression acts on, by name, numbers of a row.
    """
    manifest = {"identity": asdict(identity), "parts": [*parts], "row_lens": dict(row_lens)}
    write_text_atomically(directory / MANIFEST, json.dumps(manifest, indent=1))


def part_path(directory: Path, part: str) -> Path:
    """Where a store in this directory has a part."""
    return directory / f"{part}.safetensors"


def quantized_entries(
    name: str, shape: tuple[int, ...], *, bits: int, group_size: int
) -> dict[str, Entry]:
    """What a matrix is stored as when it is quantized."""
    rows, row_len = shape
    groups = -(-row_len // group_size)
    code_bytes = group_size * bits // 8
    return {
        f"{name}.codes": Entry(torch.uint8, (rows, groups, code_bytes)),
        f"{name}.scale": Entry(torch.float16, (rows, groups, 1)),
        f"{name}.zero": Entry(torch.float16, (rows, groups, 1)),
    }


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        return {field: manifest[field] for field in ("identity", "parts", "row_lens")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{directory} is no whole weight store ({error!r}): run `flexgen-helm convert` to make"
            " or finish it"
        ) from error
