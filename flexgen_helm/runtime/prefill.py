"""A micro-batch of packed prompt tokens on its way through the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexgen_helm.batching.packing import PackedMicroBatch, Place, Rows
from flexgen_helm.batching.readings import NO_SEGMENT
from flexgen_helm.model.attention import Attended, attend, attend_rows, attend_some, merge_
from flexgen_helm.model.kv_cache import CachePool, KeysByHead, KeysValues
from flexgen_helm.model.row_cells import RowCells, Stretch
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.segments import Segment

CHAIN_ROWS = 2048
"""Rows of chains attended to in one product; bounds the memory of their scores."""

MOST_NEEDED = 8
"""Rows of a chain up to which the last layer computes only what these attend to."""

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
        needed: rows of the micro-batch whose last hidden state is needed.
        device: where they are computed.
    """

    def __init__(self, places: Sequence[Place], needed: Rows, device: torch.device) -> None:
        self._num_chains, self._longest = len(places), len(places[0].chain)
        # Where in its chain the micro-batch's first row would be.
        origins = [len(place.chain) - place.own.stop for place in places]
        self._chains = RowCells.of(
            (Stretch(slot, 0, place.chain) for slot, place in enumerate(places)), device
        )
        self._own = RowCells.of(
            (
                Stretch(slot, origin + place.own.start, np.arange(place.own.start, place.own.stop))
                for slot, (place, origin) in enumerate(zip(places, origins, strict=True))
            ),
            device,
        )
        bounds = [_bounds(needed, place.own) for place in places]
        self._needed = RowCells.of(
            (Stretch(slot, 0, np.arange(*part)) for slot, part in enumerate(bounds)), device
        )
        ends = np.zeros((len(places), max(stop - start for start, stop in bounds)), dtype=int)
        for slot, (start, stop) in enumerate(bounds):
            ends[slot, : stop - start] = origins[slot] + needed[start:stop]
        self._unseen = torch.as_tensor(ends[..., None] < np.arange(self._longest), device=device)

    @property
    def most_needed(self) -> int:
        """Needed rows of the chain with the most."""
        return self._unseen.shape[1]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, total: Attended) -> None:
        """Put what the chains' own rows attend to into `total`, [n, h, d]."""
        # What the carried part of a chain attends to is known already: it needs no queries.
        queries = self._by_head(q, self._own, self._longest)
        keys, values = (self._by_head(x, self._chains, self._longest) for x in (k, v))
        part = attend(*(x.flatten(0, 1) for x in (queries, keys, values)), causal=True)
        for by_head, rows in zip(part, total, strict=True):
            cells = by_head.unflatten(0, (self._num_chains, -1)).transpose(1, 2)
            self._own.collect(cells, rows)

    def attend_needed(self, q: Tensor, k: Tensor, v: Tensor, total: Attended) -> None:
        """Do the same for the needed rows, the only ones that `q` and `total` have."""
        if self.most_needed:
            queries = self._by_head(q, self._needed, self.most_needed)
            keys, values = (self._by_head(x, self._chains, self._longest) for x in (k, v))
            part = attend_some(queries, keys, values, self._unseen)
            for by_head, rows in zip(part, total, strict=True):
                self._needed.collect(by_head.transpose(1, 2), rows)

    def _by_head(self, packed: Tensor, cells: RowCells, length: int) -> Tensor:
        """Rows [n, h, d] in the order in which they are read [b, h, length, d]."""
        _, h, d = packed.shape
        room = packed.new_zeros(self._num_chains, h, length, d)
        cells.spread(packed, room.transpose(1, 2))
        return room


_Reading = tuple[list[Segment], slice]
"""Segments, read as if they were one, and the rows that read them."""


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
            ChainBatch(places, needed, model.device) for places in _batches(packed.places)
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
        self._needed_readings = [
            (read, slice(*_bounds(needed, readers))) for read, readers in self._readings
        ]
        self._few_needed = all(chains.most_needed <= MOST_NEEDED for chains in self._chains)

    def attend(self, layer: int, queries: Tensor, new: KeysValues) -> Tensor:
        """Attention of all rows in a layer, [n, e] -> [n, e]; stores keys and values for later."""
        k, v = self._store(layer, new)
        q, total = self._begin(queries)
        for chains in self._chains:
            chains.attend(q, k, v, total)
        self._read(layer, self._readings, q, total)
        return total.values.flatten(1)

    def attend_needed(self, layer: int, queries: Tensor, new: KeysValues) -> Tensor:
        """Do the same in the last layer, where only the needed rows [m, e] come out."""
        if not self._few_needed:
            return self.attend(layer, queries, new)[self.needed]
        k, v = self._store(layer, new)
        q, total = self._begin(queries[self.needed])
        for chains in self._chains:
            chains.attend_needed(q, k, v, total)
        self._read(layer, self._needed_readings, q, total)
        return total.values.flatten(1)

    def _store(self, layer: int, new: KeysValues) -> tuple[Tensor, Tensor]:
        """Keep keys and values for later; return those the rows see outside of segments."""
        self._visible = visible = self._with_carried(new)
        for segment, rows in self._writes:
            segment.write(layer, visible.rows(rows).by_head(self._num_heads))
        for write in self._pool_writes:
            write.pool.write(layer, write.cells, visible)
        return self._heads(visible.keys), self._heads(visible.values)

    def _begin(self, queries: Tensor) -> tuple[Tensor, Attended]:
        """Queries [n, h, d], and room for what they attend to."""
        q = self._heads(queries)
        return q, Attended(torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32))

    def _read(self, layer: int, readings: Sequence[_Reading], q: Tensor, total: Attended) -> None:
        """Add to `total` what is read of segments."""
        for read, readers in readings:
            if readers.start < readers.stop:
                shared = KeysByHead.join([segment.computed(layer) for segment in read])
                merge_(total.rows(readers), attend_rows(q[readers], *shared))

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


def _bounds(numbers: Rows, rows: slice) -> tuple[int, int]:
    """Where among ascending numbers those of a slice are."""
    start, stop = np.searchsorted(numbers, (rows.start, rows.stop)).tolist()
    return start, stop


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
