"""How keys and values are stored, and where.

Each position is quantized on its own, along the width, so that a position once stored never
changes, and reads the same wherever it is stored.

Shape letters: b sequences, t cached positions, h heads, d head size, e model width, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flexgen_helm.offload.link import Link
from flexgen_helm.offload.records import TensorLayout
from flexgen_helm.offload.spill import Spill
from flexgen_helm.offload.weights import Decompressor
from flexgen_helm.quant import kernels
from flexgen_helm.quant.quantize import dequantize, dequantize_into, quantize
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.placement import Placement, Tier, place_evenly

HOST = torch.device("cpu")

Rows = Tensor | QuantizedTensor
"""Keys or values of some positions as stored: plain or compressed."""

KeysValuesTiers = tuple[Tier, Tier]
"""Where the keys and where the values of a layer are."""


@dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """How keys and values of a model are stored."""

    spec: ModelSpec
    compression: Compression
    dtype: torch.dtype
    """What they are computed in, and stored in if they are not compressed."""

    device: torch.device
    """What computes with them."""

    tiers: Sequence[KeysValuesTiers] = ()
    """Where they are, by layer; all on the device if empty."""

    spill: Spill | None = None
    """Where those on disk are."""

    link: Link | None = None
    """To the device; `None` where it has the host's memory."""

    @property
    def uncompressed(self) -> CacheFormat:
        """Without compression, on the device."""
        none = Compression()
        return CacheFormat(spec=self.spec, compression=none, dtype=self.dtype, device=self.device)

    @property
    def compressed(self) -> bool:
        return self.compression.cache_bits is not None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one position over all layers."""
        return self.spec.cache_bytes(
            self.compression, num_tokens=1, dtype_bytes=self.dtype.itemsize
        )

    @property
    def bytes_per_position(self) -> int:
        """Bytes of the keys, or of the values, of one position in one layer."""
        return self.bytes_per_token // (2 * self.spec.num_layers)

    @property
    def spills(self) -> bool:
        """Whether any are on disk."""
        return any(Tier.DISK in both for both in self.tiers)

    @property
    def moves(self) -> bool:
        """Whether any are brought to the device for every token."""
        to_device = self.link is not None and any(Tier.HOST in both for both in self.tiers)
        return self.spills or to_device

    @property
    def has_kernel(self) -> bool:
        """Whether a device can attend to them as they are stored."""
        compression = self.compression
        return kernels.can_attend(
            compression.cache_bits, compression.group_size, self.spec.head_size, self.device
        )

    def tensors(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Turn [n, e] into the tensors that are stored."""
        return tensors_of(self.compress(rows))

    def compress(self, rows: Tensor) -> Rows:
        """Turn [n, e] into what is stored."""
        if self.compression.cache_bits is None:
            return rows
        return quantize(
            rows, bits=self.compression.cache_bits, group_size=self.compression.group_size
        )

    def store(
        self, rows: Tensor, slots: Tensor, positions: Tensor, stored: QuantizedTensor
    ) -> None:
        """Compress rows [n, e] into cells of what is stored [b, t]."""
        if kernels.are_made_for(stored):
            kernels.quantize_into(stored, rows, slots, positions)
            return
        for tensor, part in zip(stored.tensors, self.tensors(rows), strict=True):
            tensor[slots, positions] = part

    def decompress(self, rows: Rows, memory: Tensor | None = None) -> Tensor:
        """Turn what is stored back into [..., e], compressed numbers in `memory` if it is given."""
        return dequantize(rows, self.dtype, memory) if isinstance(rows, QuantizedTensor) else rows

    def tiers_of(self, layer: int) -> KeysValuesTiers:
        """Return where a layer's are."""
        return self.tiers[layer] if self.tiers else (Tier.DEVICE, Tier.DEVICE)

    def layout(self, num_slots: int, capacity: int) -> list[TensorLayout]:
        """Return what tensors hold the positions of slots side by side."""
        if not self.compressed:  # [b, h, t, d], the order in which products read it
            shape = num_slots, self.spec.num_heads, capacity, self.spec.head_size
            return [TensorLayout(self.dtype, shape)]
        return [
            TensorLayout(tensor.dtype, (num_slots, capacity, *tensor.shape))
            for tensor in self._position
        ]

    def position_layout(self, num_slots: int) -> list[TensorLayout]:
        """Return what tensors hold one position of each slot, as `tensors` makes them."""
        return [TensorLayout(x.dtype, (num_slots, *x.shape)) for x in self._position]

    @cached_property
    def _position(self) -> list[TensorLayout]:
        position = self.tensors(torch.zeros(self.spec.hidden_size, dtype=self.dtype))
        return [TensorLayout(tensor.dtype, tuple(tensor.shape)) for tensor in position]

    def rows(self, tensors: Sequence[Tensor]) -> Rows:
        """Return what such tensors hold by position: [b, t, h, d], or compressed [b, t, ...]."""
        if not self.compressed:
            return tensors[0].transpose(1, 2)
        codes, scale, zero = tensors
        assert self.compression.cache_bits is not None
        return QuantizedTensor(
            codes=codes,
            scale=scale,
            zero=zero,
            bits=self.compression.cache_bits,
            group_size=self.compression.group_size,
            row_len=self.spec.hidden_size,
        )

    def side_by_side(self, rows: Rows) -> tuple[Tensor, ...]:
        """Undo `rows`."""
        return tensors_of(rows if isinstance(rows, QuantizedTensor) else rows.transpose(1, 2))

    def join(self, positions: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Put what `tensors` made of some positions, one after another, side by side.

        Args:
            positions: [t, b, ...].
            tensors: where to, as in `layout` for so many positions.
        """
        if self.compressed:
            in_order = [part.transpose(0, 1) for part in positions]
        else:
            heads = self.spec.num_heads, self.spec.head_size
            in_order = [part.unflatten(2, heads).permute(1, 2, 0, 3) for part in positions]
        for tensor, part in zip(tensors, in_order, strict=True):
            tensor.copy_(part)

    def both_by_head(self, keys: Rows, values: Rows) -> tuple[Tensor, Tensor]:
        """Do what `by_head` does, for keys and values in memory that is used again and again.

        What was returned before is not valid any more.
        """
        memory = self._decompressor.memory
        by_name = {"keys": keys, "values": values}.items()
        of_keys, of_values = (
            self.by_head(x, memory(name, x) if isinstance(x, QuantizedTensor) else None)
            for name, x in by_name
        )
        return of_keys, of_values

    @cached_property
    def _decompressor(self) -> Decompressor:
        return Decompressor(self.dtype)

    def by_head(self, rows: Rows, memory: Tensor | None = None) -> Tensor:
        """Return [b, h, t, d] in the compute dtype, of what `rows` returns.

        Args:
            rows: as stored.
            memory: for the numbers of compressed ones; new memory if `None`.
        """
        if (
            not isinstance(rows, QuantizedTensor)
            or self.spec.head_size % rows.group_size
            or kernels.are_made_for(rows)
        ):
            return self._by_head(self.decompress(rows, memory))
        # In the order in which products read it, as they would copy it into that order, which takes
        # as long as dequantizing.
        if memory is None:
            memory = rows.codes.new_empty(rows.num_padded, dtype=self.dtype)
        slots, positions = rows.codes.shape[:2]
        by_head = memory.view(slots, self.spec.num_heads, positions, self.spec.head_size)
        dequantize_into(by_head.transpose(1, 2).unflatten(3, (-1, rows.group_size)), rows)
        return by_head

    def _by_head(self, plain: Tensor) -> Tensor:
        if self.compressed:
            plain = plain.unflatten(2, (self.spec.num_heads, self.spec.head_size))
        return plain.transpose(1, 2)


def tensors_of(rows: Rows) -> tuple[Tensor, ...]:
    """Return what is stored."""
    return rows.tensors if isinstance(rows, QuantizedTensor) else (rows,)


def move(rows: Rows, device: torch.device) -> Rows:
    """Bring stored rows to a device."""
    if isinstance(rows, QuantizedTensor):
        return rows.map(lambda x: x.to(device))
    return rows.to(device)


def place_cache(num_layers: int, placement: Placement) -> list[KeysValuesTiers]:
    """Choose tiers for keys and values of each layer; all layers' take the same bytes."""
    placed = place_evenly([{"keys": 1, "values": 1}] * num_layers, placement)
    return [(tiers["keys"], tiers["values"]) for tiers in placed]
