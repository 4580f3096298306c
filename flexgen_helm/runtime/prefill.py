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
from flexgen_helm.model.row_cells import RowCells, Stretch
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
    cells: RowCells


class ChainBatch:
    """Chains of similar length, each attending causally to itself, padded to the longest.

    Padding comes behind a chain's end, where causal attention never looks.

    Args:
        places: of these chains, the longest first.
        device: where they are computed.
    """

    def __init__(self, places: Sequence[Place], device: torch.device) -> None:
        self._shape = len(places), len(places[0].chain)
        chains = (Stretch(slot, 0, place.chain) for slot, place in enumerate(places))
        own = (
            Stretch(slot, len(place.chain) - len(rows), rows)
            for slot, place in enumerate(places)
            for rows in [np.arange(place.own.start, place.own.stop)]
        )
        self._chains = RowCells.of(chains, device)
        self._own = RowCells.of(own, device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, total: Attended) -> None:
        """Put what the chains' own rows attend to into `total`, [n, h, d]."""
        # What the carried part of a chain attends to is known already: it needs no queries.
        queries = self._by_head(q, self._own)
        part = attend(queries, *(self._by_head(x, self._chains) for x in (k, v)), causal=True)
        for by_head, rows in zip(part, total, strict=True):
            cells = by_head.unflatten(0, (self._shape[0], -1)).transpose(1, 2)
            self._own.collect(cells, rows)

    def _by_head(self, packed: Tensor, cells: RowCells) -> Tensor:
        """Rows [n, h, d] in the order in which they are read [b * h, s, d]."""
        b, s = self._shape
        _, h, d = packed.shape
        room = packed.new_zeros(b, h, s, d)
        cells.spread(packed, room.transpose(1, 2))
        return room.flatten(0, 1)


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
        self._chains = [ChainBatch(places, model.device) for places in _batches(packed.places)]
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
            chains.attend(q, k, v, total)
        for segment, rows in self._writes:
            segment.write(layer, visible.rows(rows).by_head(self._num_heads))
        for read, readers in self._readings:
            shared = KeysByHead.join([segment.computed(layer) for segment in read])
            merge_(total.rows(readers), attend_rows(q[readers], *shared))
        for write in self._pool_writes:
            write.pool.write(layer, write.cells, visible)
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
