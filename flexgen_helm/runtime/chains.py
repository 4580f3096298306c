"""Chains of a micro-batch: what its rows see outside of segments, attended to side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexgen_helm.batching.packing import Place, Rows
from flexgen_helm.model.attention import Attended, attend, attend_some
from flexgen_helm.model.row_cells import RowCells, Stretch

CHAIN_ROWS = 2048
"""Rows of chains attended to in one product; bounds the memory of their scores."""

LEAST_SIMILAR = 0.85
"""Chains share a product if the shortest has at least this part of the longest one's length."""


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
        own = [np.arange(place.own.start, place.own.stop) for place in places]
        wanted = [bounds(needed, place.own) for place in places]
        slots, numbers = range(len(places)), np.arange(len(needed))
        self._chains = RowCells.of([Stretch(i, 0, places[i].chain) for i in slots], device)
        self._own = RowCells.of([Stretch(i, origins[i] + own[i][0], own[i]) for i in slots], device)
        self._needed = RowCells.of([Stretch(i, 0, numbers[wanted[i]]) for i in slots], device)
        ends = [origins[i] + needed[wanted[i]] for i in slots]
        self._unseen = torch.as_tensor(_unseen(ends, self._longest), device=device)

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


def chain_batches(places: Sequence[Place], needed: Rows, device: torch.device) -> list[ChainBatch]:
    """Divide the chains of a micro-batch into batches of similar length."""
    return [ChainBatch(batch, needed, device) for batch in _batches(places)]


def bounds(numbers: Rows, rows: slice) -> slice:
    """Where among ascending numbers those of a slice are."""
    start, stop = np.searchsorted(numbers, (rows.start, rows.stop)).tolist()
    return slice(start, stop)


def _unseen(ends: Sequence[Rows], length: int) -> NDArray[np.bool_]:
    """Where queries must not look [b, s, length], given the last position that each sees."""
    last = np.zeros((len(ends), max(map(len, ends))), dtype=np.int64)
    for slot, positions in enumerate(ends):
        last[slot, : len(positions)] = positions
    return last[..., None] < np.arange(length)


def _batches(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Group places whose chains are of similar length."""
    batch: list[Place] = []
    for place in sorted(places, key=lambda place: -len(place.chain)):
        if batch:
            longest = len(batch[0].chain)
            similar = len(place.chain) >= LEAST_SIMILAR * longest
            if not similar or (len(batch) + 1) * longest > CHAIN_ROWS:
                yield batch
                batch = []
        batch.append(place)
    if batch:
        yield batch
