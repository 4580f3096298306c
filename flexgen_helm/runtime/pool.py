"""A pool of sequences in decode, whose caches stand side by side: one product serves all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flexgen_helm.model.attention import (
    Attended,
    attend_one,
    attend_self,
    attend_some,
    merge_,
)
from flexgen_helm.model.cache_storage.base import StorageSize
from flexgen_helm.model.kv_cache import CachePool, KeysValues
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.model.sparse_attention import TopPositions, attend_top, find_top
from flexgen_helm.quant import kernels
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.runtime.job import Job
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.segments import Segment
from flexgen_helm.runtime.sequence import Sequence
from flexgen_helm.specs.chunks import GROWTH

COPY_READS = 5
"""What it costs to copy a sequence's cache, in times it is read: the copy is written to memory that
the system has to provide."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoding:
    """A sequence in decode."""

    sequence: Sequence
    job: Job
    """The request it completes."""

    order: tuple[int, int]
    """Block and position."""

    segments: tuple[Segment, ...]
    """What it shares with others."""

    shared_tokens: float
    """Its share of the tokens in these."""

    chain_len: int
    """Prompt tokens it has to itself."""

    capacity: int
    """Tokens its own cache will hold at most."""

    @property
    def own_len(self) -> int:
        """Tokens its own cache holds; the last token has not been read yet."""
        return self.chain_len + max(0, len(self.sequence.generated) - 1)


class PoolInputs(NamedTuple):
    """What a pool's next tokens are computed with, in all layers.

    It must outlast a CUDA graph that reads it.
    """

    ends: Tensor
    """Positions that each slot has [b], where attention is computed."""

    used: Tensor
    """Slots that are in use [n], likewise."""

    cells: RowCells
    """Where each of n rows goes."""


class Pool:
    """Sequences whose own keys and values stand side by side.

    Args:
        members: sequences by slot, sorted by `order`.
        cache: their own keys and values.
        model: what computes them.
    """

    def __init__(self, members: Sequence_[Decoding], cache: CachePool, model: Model) -> None:
        self.cache = cache
        self.members = list(members)
        self.most_positions = most_positions_of(model)
        self._slots = list(range(len(self.members)))
        self._model = model
        self._has_kernel = model.cache_format.has_kernel and not model.attention_on_host
        """Whether the cache is attended to as it is stored."""

    @classmethod
    def make(cls, members: Iterable[Decoding], model: Model) -> Pool:
        """Return a pool with an empty cache."""
        ordered = sorted(members, key=lambda member: member.order)
        cache = CachePool(model.cache_format, len(ordered), _current_size(ordered))
        return cls(ordered, cache, model)

    @property
    def sequences(self) -> list[Sequence]:
        return [member.sequence for member in self.members]

    @property
    def capacity(self) -> int:
        """Tokens each slot will need at most."""
        return max(member.capacity for member in self.members)

    @property
    def num_tokens(self) -> int:
        """Tokens all slots will need at most."""
        return self.cache.num_slots * self.capacity

    @property
    def copy_reads(self) -> float:
        """What it costs to pack it anew, in times a sequence's cache is read."""
        return COPY_READS * len(self.members)

    @property
    def remaining_len(self) -> int:
        """Tokens until all sequences have ended, at most."""
        return max(member.capacity - member.own_len for member in self.members)

    @property
    def outgrown(self) -> bool:
        """Whether the next token has no place, or unused slots cost more than packing it anew."""
        full = max(member.own_len for member in self.members) >= self.cache.capacity
        unused = self.cache.num_slots - len(self.members)
        return full or unused * self.remaining_len > self.copy_reads

    def drop_finished(self) -> list[Decoding]:
        """Take out the sequences that have ended."""
        alive = [not member.sequence.finished for member in self.members]
        dropped = [m for m, live in zip(self.members, alive, strict=True) if not live]
        self._slots = [s for s, live in zip(self._slots, alive, strict=True) if live]
        self.members = [m for m, live in zip(self.members, alive, strict=True) if live]
        return dropped

    @classmethod
    def merge(cls, pools: Sequence_[Pool]) -> Pool:
        """Return one pool of those that are left in several, without unused slots, with room."""
        model = pools[0]._model
        pairs = [(pool, index) for pool in pools for index in range(len(pool.members))]
        pairs.sort(key=lambda pair: pair[0].members[pair[1]].order)
        runs: list[tuple[Pool, list[int]]] = []
        for pool, index in pairs:
            if not runs or runs[-1][0] is not pool:
                runs.append((pool, []))
            runs[-1][1].append(pool._slots[index])
        cache = CachePool.gather(
            [(pool.cache, model.indices(slots)) for pool, slots in runs],
            [max(member.own_len for member in pool.members) for pool, _ in runs],
            _current_size([pool.members[index] for pool, index in pairs]),
        )
        return cls([pool.members[index] for pool, index in pairs], cache, model)

    def begin_token(self) -> PoolInputs:
        """Prepare what is the same in all layers."""
        lengths = [member.own_len for member in self.members]
        cells = RowCells(range(len(lengths)), self._slots, lengths, self._model.device)
        ends = self._model.indices([0] * self.cache.num_slots)
        ends[cells.slots] = cells.positions
        attending = self._model.attention_device
        self._inputs = PoolInputs(ends.to(attending), cells.slots.to(attending), cells)
        self._masks: dict[tuple[int, int], Tensor] = {}
        return self._inputs

    def begin_read(self, layer: int) -> int:
        """Begin to read what attention will wait for; return the bytes of memory this takes."""
        dense = self._model.compression.dense_attention
        begin = self.cache.begin_read if dense else self.cache.begin_read_top
        return begin(layer, on_host=self._model.attention_on_host)

    def attend(self, layer: int, queries: Tensor, new: KeysValues) -> Attended:
        """Attention, in a layer, of each sequence's new position [b, h, d] to what is its own.

        What it gets, and returns, is where attention is computed.
        """
        q, own_keys, own_values = map(self._by_slot, _by_head(queries, new))
        attend = self._attend_stored if self._has_kernel else self._attend_parts
        attended = attend(layer, q, own_keys, own_values)
        on_host = self._model.attention_on_host
        self.cache.write(layer, self._inputs.cells.on(queries.device), new, on_host=on_host)
        return Attended(*map(self._by_row, attended))

    def _attend_stored(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> Attended:
        attended = attend_self(q, keys, values)
        with self.cache.read_stored(layer) as (past_keys, past_values):
            assert isinstance(past_keys, QuantizedTensor), "kernels are for compressed caches"
            assert isinstance(past_values, QuantizedTensor), "likewise"
            past = kernels.attend(q, past_keys, past_values, self._inputs.ends)
        merge_(attended, Attended(*past))
        return attended

    def _attend_parts(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> Attended:
        with self.cache.read(layer, on_host=self._model.attention_on_host) as (first, *last):
            num_last = sum(part.keys.shape[2] for part in last)
            mask = self._mask(first.keys.shape[2], num_last)
            attended = attend_one(q, first.keys, first.values, mask, keys, values)
            for part in last:
                other = attend_some(q[:, :, None], part.keys, part.values)
                merge_(attended, Attended(*(x.squeeze(2) for x in other)))
        return attended

    def find_top(self, layer: int, queries: Tensor, most: int) -> TopPositions:
        """Find, in a layer, what of their own past new positions [n, h, d] may attend to."""
        with self.cache.read_keys(layer, on_host=self._model.attention_on_host) as keys:
            mask = self._mask(keys.shape[2])
            top = find_top(self._by_slot(queries), keys, mask, most)
        return TopPositions(*map(self._by_row, top))

    def attend_top(
        self,
        layer: int,
        queries: Tensor,
        new: KeysValues,
        top: TopPositions,
        thresholds: Tensor,
    ) -> Attended:
        """Do as `attend` does, with that part of the past whose scores reach a threshold [n, h]."""
        device, on_host = self._model.attention_device, self._model.attention_on_host
        q, own_keys, own_values = (x.to(device) for x in _by_head(queries, new))
        positions = self._by_slot(top.positions)
        top_values = self._by_row(self.cache.values_at(layer, positions, on_host=on_host))
        attended = attend_top(q, own_keys, own_values, top, top_values, thresholds.to(device))
        self.cache.write(layer, self._inputs.cells, new)
        return attended.to(queries.device)

    def _mask(self, num_positions: int, num_last: int = 0) -> Tensor:
        """Where, of the first positions, a slot has none [b, t], its last ones being elsewhere."""
        mask = self._masks.get((num_positions, num_last))
        if mask is None:
            ends = self._inputs.ends
            positions = torch.arange(num_positions, device=ends.device)
            mask = positions >= ends[:, None] - num_last
            self._masks[num_positions, num_last] = mask
        return mask

    def _by_slot(self, rows: Tensor) -> Tensor:
        """Bring rows of new positions [n, ...] to where attention is computed, by slot [b, ...]."""
        rows = rows.to(self._model.attention_device)
        if len(self._slots) == self.cache.num_slots:
            return rows
        slots = rows.new_zeros(self.cache.num_slots, *rows.shape[1:])
        slots[self._inputs.used] = rows
        return slots

    def _by_row(self, slots: Tensor) -> Tensor:
        """Undo `_by_slot`, where attention is computed."""
        return slots if len(self._slots) == self.cache.num_slots else slots[self._inputs.used]


def _current_size(members: Sequence_[Decoding]) -> StorageSize:
    """Size of a pool until it is packed anew."""
    capacity = max(min(member.capacity, member.own_len + GROWTH) for member in members)
    return StorageSize(
        num_prefilled=max(member.own_len for member in members),
        num_later=max(min(member.capacity, capacity) - member.own_len for member in members),
        capacity=capacity,
    )


def most_positions_of(model: Model) -> float:
    """Positions of a pool whose keys, or values, may be read at once; those of one always may."""
    cache_format = model.cache_format
    moves = cache_format.spills if model.attention_on_host else cache_format.moves
    if not moves:
        return math.inf
    return model.spilled_at_once / cache_format.bytes_per_position


def _by_head(queries: Tensor, new: KeysValues) -> list[Tensor]:
    """Queries [n, h, d], and new keys and values [n, e], as three of the former."""
    return [queries, *(x.unflatten(1, queries.shape[1:]) for x in new)]
