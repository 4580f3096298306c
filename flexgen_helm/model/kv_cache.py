"""Keys and values as they are stored: of a segment many sequences share, of sequences side by side.

Shape letters: b sequences, t cached positions, h heads, d head size, e model width, n rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from flexgen_helm.model.cache_format import HOST, CacheFormat, Rows, move
from flexgen_helm.model.cache_storage import make_storage
from flexgen_helm.model.cache_storage.base import CacheStorage, StorageSize
from flexgen_helm.model.cache_storage.disk import DiskStorage
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.offload.stored_tensors import InMemory, OnHost, StoredTensors, spill_tensors
from flexgen_helm.specs.placement import Tier


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


class SegmentCache:
    """Keys and values of consecutive positions over all layers."""

    def __init__(self, cache_format: CacheFormat, num_tokens: int) -> None:
        self._format = cache_format
        self._layers: dict[int, list[StoredTensors]] = {}
        self.num_tokens = num_tokens

    def write(self, layer: int, new: KeysByHead) -> None:
        """Store all positions of a layer, both [h, t, d]."""
        assert new.keys.shape[1] == self.num_tokens, "a segment is written at once"
        tiers = self._format.tiers_of(layer)
        self._layers[layer] = [
            self._stored(rows, tier) for rows, tier in zip(new, tiers, strict=True)
        ]

    def begin_read(self, layer: int) -> int:
        """Begin what `read` will wait for; return the bytes of memory this takes."""
        return sum(stored.begin_read() for stored in self._layers[layer])

    def read(self, layer: int) -> KeysByHead:
        """Return all positions of a layer, both [h, t, d], in the compute dtype."""
        return KeysByHead(*(self._by_head(stored.read()) for stored in self._layers[layer]))

    def _stored(self, rows: Tensor, tier: Tier) -> StoredTensors:
        tensors: Sequence[Tensor] = (rows,)
        if self._format.compressed:  # codes belong to a position, not to a head: [t, g, codes]
            tensors = self._format.tensors(rows.transpose(0, 1).flatten(1))
        if tier is Tier.DISK:
            assert self._format.spill is not None, "a cache on disk comes with a spill"
            return spill_tensors(tensors, self._format.spill, self._format.link)
        if tier is Tier.HOST and self._format.link is not None:
            return OnHost(tensors, self._format.link)
        return InMemory(tensors)

    def _by_head(self, tensors: Sequence[Tensor]) -> Tensor:
        if not self._format.compressed:
            return tensors[0]
        rows = self._format.by_head(self._format.rows([tensor[None] for tensor in tensors]))
        return rows[0].contiguous()


class CachePart(NamedTuple):
    """Keys and values of positions of each slot of a pool, both [b, h, t, d]."""

    keys: Tensor
    values: Tensor


class CachePool:
    """Keys and values of sequences of similar length, padded to the same capacity.

    Side by side, so that one batched product serves them all. One that has left keeps its slot,
    and the capacity its size, until the pool is `gather`ed into another.

    Args:
        cache_format: how they are stored.
        num_slots: b.
        size: positions of each.
    """

    def __init__(self, cache_format: CacheFormat, num_slots: int, size: StorageSize) -> None:
        self._format = cache_format
        self.num_slots = num_slots
        self.capacity = size.capacity
        self._layers = [
            self._make_storages(layer, size) for layer in range(cache_format.spec.num_layers)
        ]

    def _make_storages(self, layer: int, size: StorageSize) -> list[CacheStorage]:
        """Storage of keys, and of values."""
        tiers = self._format.tiers_of(layer)
        return [make_storage(self._format, tier, self.num_slots, size) for tier in tiers]

    def write(self, layer: int, cells: RowCells, new: KeysValues, *, on_host: bool = False) -> None:
        """Store those of the rows [n, e] that have a cell here, of the device or of the host."""
        for storage, rows in zip(self._storages(layer, on_host=on_host), new, strict=True):
            storage.write(cells, rows)

    def end_prefill(self, layer: int) -> None:
        """Be told that from now on each sequence gets one position at a time in a layer."""
        for storage in self._layers[layer]:
            storage.end_prefill()

    def begin_read(self, layer: int, *, on_host: bool = False) -> int:
        """Begin what `read` will wait for; return the bytes of memory this takes."""
        return sum(storage.begin_read() for storage in self._storages(layer, on_host=on_host))

    def begin_read_top(self, layer: int, *, on_host: bool = False) -> int:
        """Begin what `read_keys` and `values_at` will wait for, likewise."""
        keys, _ = self._storages(layer, on_host=on_host)
        return keys.begin_read() + self._chosen_values(layer, on_host=on_host).begin_read()

    def forget_reads(self) -> None:
        """Give up the host's memory of what was begun to be read."""
        for storages in self._layers:
            for storage in storages:
                storage.forget_read()

    @contextmanager
    def read(self, layer: int, *, on_host: bool = False) -> Iterator[list[CachePart]]:
        """Lend all positions of all slots of a layer, in one part or in several.

        To the device, or to the host for what it attends to.

        The first has t positions of each slot. What lies beyond a sequence's own length is finite,
        and means nothing. It is part of the answer because batched products are several times
        faster on tensors without gaps. The others have the last positions of each slot in use.
        """
        keys, values = self._storages(layer, on_host=on_host)
        if isinstance(keys, DiskStorage) and isinstance(values, DiskStorage):
            with keys.read_parts() as key_parts, values.read_parts() as value_parts:
                yield [
                    CachePart(*map(self._format.by_head, both))
                    for both in zip(key_parts, value_parts, strict=True)
                ]
        else:
            with self.read_stored(layer, on_host=on_host) as stored:
                yield [CachePart(*self._format.both_by_head(*stored))]

    @contextmanager
    def read_stored(self, layer: int, *, on_host: bool = False) -> Iterator[tuple[Rows, Rows]]:
        """Lend keys and values of a layer as they are stored; see `read`."""
        keys, values = self._storages(layer, on_host=on_host)
        with keys.read() as all_keys, values.read() as all_values:
            where = HOST if on_host else self._format.device
            yield move(all_keys, where), move(all_values, where)

    @contextmanager
    def read_keys(self, layer: int, *, on_host: bool = False) -> Iterator[Tensor]:
        """Lend the keys at all positions of all slots [b, h, t, d]; t is the capacity."""
        keys, _ = self._storages(layer, on_host=on_host)
        with keys.read() as rows:
            yield self._format.by_head(move(rows, HOST if on_host else self._format.device))

    def values_at(self, layer: int, positions: Tensor, *, on_host: bool = False) -> Tensor:
        """Return the values at some positions of each slot, [b, h, k] -> [b, h, k, d].

        Only these are moved to where `positions` is, unless they are compressed: there a position's
        codes are those of all heads.
        """
        with self._chosen_values(layer, on_host=on_host).read() as rows:
            if self._format.compressed:
                rows = move(rows, positions.device)
            by_head = self._format.by_head(rows)
            chosen = positions[..., None].to(by_head.device)
            return by_head.take_along_dim(chosen, dim=2).to(positions.device)

    def _chosen_values(self, layer: int, *, on_host: bool) -> CacheStorage:
        """What `values_at` reads."""
        _, values = self._layers[layer]
        return values if self._format.compressed and not on_host else values.stored

    def _storages(self, layer: int, *, on_host: bool) -> list[CacheStorage]:
        """Storage of keys, and of values: for the host what holds them, without the link."""
        storages = self._layers[layer]
        return [storage.stored for storage in storages] if on_host else storages

    @classmethod
    def gather(
        cls,
        pieces: Sequence[tuple[CachePool, Tensor]],
        lengths: Sequence[int],
        size: StorageSize,
    ) -> CachePool:
        """Return a pool of the given slots of others, one after another.

        The others are not used any more: each layer's storage is given back when it has been read,
        so that there is never more than one layer twice.

        Args:
            pieces: pools and, of each, the slots to take.
            lengths: of each pool, positions written at most.
            size: of the new pool.
        """
        gathered = cls.__new__(cls)  # its storage is made as that of the others is given back
        gathered._format = pieces[0][0]._format
        gathered.num_slots = sum(len(slots) for _, slots in pieces)
        gathered.capacity = size.capacity
        gathered._layers = []
        for layer in range(gathered._format.spec.num_layers):
            gathered._layers.append(gathered._make_storages(layer, size))
            for which, storage in enumerate(gathered._layers[layer]):
                start = 0
                for (pool, slots), length in zip(pieces, lengths, strict=True):
                    with pool._layers[layer][which].stored.read() as source:
                        storage.copy(start, source, slots, length)
                    start += len(slots)
                storage.end_prefill()
            for pool, _ in pieces:
                pool._layers[layer] = []
        return gathered
