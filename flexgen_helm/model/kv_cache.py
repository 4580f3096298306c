"""Keys and values as they are stored: of a segment many sequences share, of sequences side by side.

Each position is quantized on its own, along the width, so that a position once stored never
changes, and reads the same wherever it is stored.

Shape letters: b sequences, t cached positions, h heads, d head size, e model width, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.quant.quantize import QuantizedTensor, dequantize, quantize
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec

Rows = Tensor | QuantizedTensor
"""Keys or values of some positions as stored: plain or compressed."""


class KeysValues(NamedTuple):
    """Keys and values of some positions, both [positions, e]."""

    keys: Tensor
    values: Tensor

    def rows(self, rows: Tensor | slice) -> KeysValues:
        return KeysValues(self.keys[rows], self.values[rows])

    def by_head(self, num_heads: int) -> KeysByHead:
        """Copy them into the order in which they are read."""
        keys, values = (x.unflatten(1, (num_heads, -1)).transpose(0, 1).contiguous() for x in self)
        return KeysByHead(keys, values)


class KeysByHead(NamedTuple):
    """Keys and values of some positions, both [h, positions, d]."""

    keys: Tensor
    values: Tensor

    @classmethod
    def join(cls, parts: Sequence[KeysByHead]) -> KeysByHead:
        """Return those of one run of positions after another."""
        if len(parts) == 1:
            return parts[0]
        keys, values = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        return cls(keys, values)

    def slice(self, start: int, stop: int) -> KeysByHead:
        """Part of the positions, sharing memory."""
        return KeysByHead(self.keys[:, start:stop], self.values[:, start:stop])


@dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """How keys and values of a model are stored."""

    spec: ModelSpec
    compression: Compression
    dtype: torch.dtype
    """What they are computed in, and stored in if they are not compressed."""

    device: torch.device

    @property
    def uncompressed(self) -> CacheFormat:
        """The same without compression."""
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

    def compress(self, rows: Tensor) -> Rows:
        """Turn [n, e] into what is stored."""
        if self.compression.cache_bits is None:
            return rows
        return quantize(
            rows, bits=self.compression.cache_bits, group_size=self.compression.group_size
        )

    def decompress(self, rows: Rows) -> Tensor:
        """Turn what is stored back into [..., e]."""
        return dequantize(rows, self.dtype) if isinstance(rows, QuantizedTensor) else rows

    def empty(self, *shape: int) -> Rows:
        """Room for positions, stored as `compress` returns them."""
        position = torch.zeros(self.spec.hidden_size, dtype=self.dtype, device=self.device)
        return _map(self.compress(position), lambda x: x.new_empty(*shape, *x.shape))


class SegmentCache:
    """Keys and values of consecutive positions over all layers."""

    def __init__(self, cache_format: CacheFormat, num_tokens: int) -> None:
        self._format = cache_format
        self._layers: dict[int, tuple[Rows, Rows]] = {}
        self.num_tokens = num_tokens

    @property
    def num_bytes(self) -> int:
        """Bytes as stored."""
        return sum(
            tensor.numel() * tensor.element_size()
            for both in self._layers.values()
            for rows in both
            for tensor in _tensors(rows)
        )

    def write(self, layer: int, new: KeysByHead) -> None:
        """Store all positions of a layer, both [h, t, d]."""
        assert new.keys.shape[1] == self.num_tokens, "a segment is written at once"
        if self._format.compressed:  # codes belong to a position, not to a head: [t, g, codes]
            keys, values = (self._format.compress(x.transpose(0, 1).flatten(1)) for x in new)
            self._layers[layer] = keys, values
        else:
            self._layers[layer] = new

    def read(self, layer: int) -> KeysByHead:
        """Return all positions of a layer, both [h, t, d], in the compute dtype."""
        keys, values = map(self._format.decompress, self._layers[layer])
        if self._format.compressed:
            return KeysValues(keys, values).by_head(self._format.spec.num_heads)
        return KeysByHead(keys, values)


class CachePool:
    """Keys and values of sequences of similar length, padded to the same capacity.

    Side by side, so that one batched product serves them all. One that has left keeps its slot,
    and the capacity its size, until the pool is `gather`ed into another.

    Args:
        cache_format: how they are stored.
        num_slots: b.
        capacity: t of the longest, at its end.
    """

    def __init__(self, cache_format: CacheFormat, num_slots: int, capacity: int) -> None:
        self._format = cache_format
        self.num_slots = num_slots
        self.capacity = capacity
        self._layers = [(self._room(), self._room()) for _ in range(cache_format.spec.num_layers)]

    def write(self, layer: int, cells: RowCells, new: KeysValues) -> None:
        """Store those of the rows [n, e] that have a cell here."""
        for room, rows in zip(self._layers[layer], new, strict=True):
            if isinstance(room, Tensor):
                cells.spread(rows.unflatten(1, room.shape[2:]), room)
                continue
            stored = self._format.compress(cells.rows_of(rows))
            for tensor, part in zip(_tensors(room), _tensors(stored), strict=True):
                cells.store(part, tensor)

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return all positions of all slots, both [b, h, t, d]; t is the capacity.

        What lies beyond a sequence's own length is finite, and means nothing. It is part of the
        answer because batched products are several times faster on tensors without gaps.
        """
        keys, values = (self._heads(room) for room in self._layers[layer])
        return keys, values

    @classmethod
    def gather(
        cls, pieces: Sequence[tuple[CachePool, Tensor]], lengths: Sequence[int], capacity: int
    ) -> CachePool:
        """Return a pool of the given slots of others, one after another.

        Args:
            pieces: pools and, of each, the slots to take.
            lengths: of each pool, positions written at most.
            capacity: of the new pool.
        """
        first = pieces[0][0]
        gathered = cls(first._format, sum(len(slots) for _, slots in pieces), capacity)
        for layer, both in enumerate(gathered._layers):
            for which, room in enumerate(both):
                start = 0
                for (pool, slots), length in zip(pieces, lengths, strict=True):
                    sources = _tensors(pool._layers[layer][which])
                    for tensor, source in zip(_tensors(room), sources, strict=True):
                        tensor[start : start + len(slots), :length] = source[slots, :length]
                    start += len(slots)
        return gathered

    def _room(self) -> Rows:
        if self._format.compressed:
            room = self._format.empty(self.num_slots, self.capacity)
            return _map(room, Tensor.zero_)
        # Laid out [b, h, t, d], the order in which products read it.
        spec = self._format.spec
        room = torch.zeros(
            self.num_slots,
            spec.num_heads,
            self.capacity,
            spec.head_size,
            dtype=self._format.dtype,
            device=self._format.device,
        )
        return room.transpose(1, 2)

    def _heads(self, room: Rows) -> Tensor:
        rows = self._format.decompress(room)
        spec = self._format.spec
        if self._format.compressed:
            rows = rows.unflatten(2, (spec.num_heads, spec.head_size))
        return rows.transpose(1, 2)


def _map(rows: Rows, function: Callable[[Tensor], Tensor]) -> Rows:
    return rows.map(function) if isinstance(rows, QuantizedTensor) else function(rows)


def _tensors(rows: Rows) -> tuple[Tensor, ...]:
    return rows.tensors if isinstance(rows, QuantizedTensor) else (rows,)
