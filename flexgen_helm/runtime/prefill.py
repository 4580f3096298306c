"""A micro-batch of packed prompt tokens on its way through the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexgen_helm.batching.packing import PackedMicroBatch, Place, Rows
from flexgen_helm.batching.readings import NO_SEGMENT
from flexgen_helm.model.attention import Attended, attend, attend_rows, merge_
from flexgen_helm.model.kv_cache import CachePool, KeysByHead, KeysValues
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.segments import Segment

CHAIN_ROWS = 2048
"""Rows of chains attended to in one product; bounds the memory of their scores."""

LEAST_FILLED = 0.85
"""Chains share a product if the shortest has at least this part of the longest one's length."""


@dataclass(frozen=True, kw_only=True)
class PoolWrite:
    """Rows whose keys and values go into a pool, for the sequences that will decode."""

    pool: CachePool
    rows: Tensor
    slots: Tensor
    positions: Tensor


@dataclass(frozen=True, kw_only=True)
class ChainBatch:
    """Chains of similar length, each attending causally to itself, padded to the longest.

    Padding comes behind a chain's end, where causal attention never looks.
    """

    rows: Tensor
    """Row of each position among those the micro-batch sees [b, s]."""

    queries: Tensor
    """Row of its query [b, s]; of carried ones any, as what they attend to is known already."""

    computed: Tensor
    """Which of the b * s positions are rows of their own, not copies or padding [n]."""

    own: Tensor
    """Rows these are [n]."""


class PrefillMicroBatch:
    """Rows of a packed tree, and what they attend to.

    Args:
        packed: which rows, and who sees whom.
        prompts: per position of the block, the prompt.
        segments: of the whole block.
        pool_writes: what to store for decode.
        needed: rows whose last hidden state is needed.
        previous: the micro-batch before, part of which this one sees.
        model: what computes them.
    """

    def __init__(
        self,
        packed: PackedMicroBatch,
        prompts: Sequence[Sequence[int]],
        segments: Sequence[Segment],
        pool_writes: Sequence[PoolWrite],
        needed: Rows,
        previous: PrefillMicroBatch | None,
        model: Model,
    ) -> None:
        self.num_rows = packed.num_rows
        self.needed: Tensor | None = model.indices(needed)
        nodes = [place.node for place in packed.places]
        self.token_ids = model.indices(
            [token for node in nodes for token in prompts[node.first][node.start : node.end]]
        )
        self.positions = model.indices(
            np.concatenate([np.arange(node.start, node.end) for node in nodes])
        )
        self._num_heads = model.spec.num_heads
        self._pool_writes = pool_writes
        self._previous = previous
        self._carried = model.indices(packed.carried)
        self._chains = [
            _chain_batch(places, len(packed.carried), model) for places in _batches(packed.places)
        ]
        self._writes = [
            (segments[place.segment], model.indices(place.chain))
            for place in packed.places
            if place.segment != NO_SEGMENT
        ]
        self._readings = [
            ([segments[segment] for segment in reading.segments], reading.rows)
            for reading in packed.readings
        ]

    def attend(self, layer: int, queries: Tensor, new: KeysValues) -> Tensor:
        """Attention of all rows in a layer, [n, e] -> [n, e]; stores keys and values for later."""
        self._visible = visible = self._with_carried(new)
        q, k, v = (self._heads(x) for x in (queries, *visible))
        total = Attended(torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32))
        for chains in self._chains:
            part = _attend_chains(q[chains.queries], k[chains.rows], v[chains.rows])
            total.values[chains.own] = part.values[chains.computed]
            total.lse[chains.own] = part.lse[chains.computed]
        for segment, rows in self._writes:
            segment.write(layer, visible.rows(rows).by_head(self._num_heads))
        for read, readers in self._readings:
            shared = KeysByHead.join([segment.computed(layer) for segment in read])
            merge_(total.rows(readers), attend_rows(q[readers], *shared))
        for write in self._pool_writes:
            write.pool.write(layer, write.slots, write.positions, visible.rows(write.rows))
        return total.values.flatten(1)

    def _with_carried(self, new: KeysValues) -> KeysValues:
        """Keys and values this micro-batch sees outside of segments."""
        if not len(self._carried):
            return new
        assert self._previous is not None, "the first micro-batch sees nothing carried"
        carried = self._previous._visible.rows(self._carried)
        keys, values = (torch.cat(both) for both in zip(carried, new, strict=True))
        return KeysValues(keys, values)

    def _heads(self, rows: Tensor) -> Tensor:
        """[n, e] -> [n, h, d]."""
        return rows.unflatten(1, (self._num_heads, -1))


def _attend_chains(queries: Tensor, keys: Tensor, values: Tensor) -> Attended:
    """Causal attention of each of b chains to itself, [b, s, h, d] -> [b * s, h, d]."""
    b, s, h, d = queries.shape
    q, k, v = (x.transpose(1, 2).reshape(b * h, s, d) for x in (queries, keys, values))
    part = attend(q, k, v, causal=True)
    return Attended(
        part.values.view(b, h, s, d).transpose(1, 2).reshape(b * s, h, d),
        part.lse.view(b, h, s).transpose(1, 2).reshape(b * s, h),
    )


def _batches(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Group places whose chains are of similar length."""
    batch: list[Place] = []
    for place in sorted(places, key=lambda place: -len(place.chain)):
        if batch:
            longest = len(batch[0].chain)
            similar = len(place.chain) >= LEAST_FILLED * longest
            if not similar or (len(batch) + 1) * longest > CHAIN_ROWS:
                yield batch
                batch = []
        batch.append(place)
    if batch:
        yield batch


def _chain_batch(places: Sequence[Place], num_carried: int, model: Model) -> ChainBatch:
    longest = len(places[0].chain)
    rows = np.stack([np.resize(place.chain, longest) for place in places])
    ends = np.arange(len(places)) * longest + [len(place.chain) for place in places]
    computed = [
        np.arange(end - place.node.num_tokens, end) for end, place in zip(ends, places, strict=True)
    ]
    own = [np.arange(place.own.start, place.own.stop) for place in places]
    return ChainBatch(
        rows=model.indices(rows),
        queries=model.indices(np.maximum(rows - num_carried, 0)),
        computed=model.indices(np.concatenate(computed)),
        own=model.indices(np.concatenate(own)),
    )
