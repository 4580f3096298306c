"""Micro-batches of sequences in decode."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Sequence_

import torch
from torch import Tensor

from flexgen_helm.model.attention import Attended, attend_rows, merge_
from flexgen_helm.model.kv_cache import KeysValues, SegmentCache
from flexgen_helm.model.row_cells import row_index
from flexgen_helm.model.sparse_attention import LargestScores, attend_shared_top
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.pools import Decoding, Pool
from flexgen_helm.runtime.segments import Segment


class DecodeMicroBatch:
    """Pools that pass through a layer together, one new token a sequence."""

    needed: Tensor | None = None
    """All rows."""

    def __init__(self, pools: Sequence_[Pool], model: Model) -> None:
        self.sequences = [sequence for pool in pools for sequence in pool.sequences]
        self.token_ids = model.indices([s.generated[-1] for s in self.sequences])
        self.positions = model.indices([s.position for s in self.sequences])
        self._num_heads = model.spec.num_heads
        self._pools: list[tuple[Pool, slice]] = []
        start = 0
        for pool in pools:
            pool.begin_token()
            self._pools.append((pool, slice(start, start + len(pool.members))))
            start += len(pool.members)
        percent = model.compression.attention_percent
        self._num_attended = [
            -(-sequence.position * percent // 100) for sequence in self.sequences if percent
        ]
        """Past positions each row attends to, where that is not all of them."""
        readers = _readers(member for pool in pools for member in pool.members)
        self._readings = [(segment, row_index(rows, model.device)) for segment, rows in readers]

    def attend(self, layer: int, queries: Tensor, new: KeysValues) -> Tensor:
        """Attention of all rows in a layer, [n, e] -> [n, e].

        What sequences share is read once for all of them, whichever pools they are in.
        """
        q = queries.unflatten(1, (self._num_heads, -1))
        attend = self._attend_top if self._num_attended else self._attend
        return attend(layer, q, new).values.flatten(1)

    def _attend(self, layer: int, q: Tensor, new: KeysValues) -> Attended:
        total = _join(pool.attend(layer, q[rows], new.rows(rows)) for pool, rows in self._pools)
        for segment, readers in self._readings:
            _merge_rows_(total, readers, attend_rows(q[readers], *_stored(segment).read(layer)))
        return total

    def _attend_top(self, layer: int, q: Tensor, new: KeysValues) -> Attended:
        most = max(self._num_attended)
        counts = torch.tensor(self._num_attended, device=q.device)
        largest = LargestScores(counts, most, self._num_heads)
        tops = []
        for pool, rows in self._pools:
            tops.append(pool.find_top(layer, q[rows], most))
            largest.add(rows, tops[-1].scores)
        shared = [(readers, _stored(segment).read(layer)) for segment, readers in self._readings]
        for readers, (keys, _) in shared:
            largest.add_shared(readers, q[readers], keys)
        least = largest.thresholds()
        total = _join(
            pool.attend_top(layer, q[rows], new.rows(rows), top, least[rows])
            for (pool, rows), top in zip(self._pools, tops, strict=True)
        )
        for readers, both in shared:
            part = attend_shared_top(q[readers], *both, least[readers])
            _merge_rows_(total, readers, part)
        return total

    attend_needed = attend

    def begin_read(self, layer: int) -> int:
        """Begin to read, for all that is attended to in a layer, what is not in memory.

        Returns the bytes of memory that this takes.
        """
        pools = sum(pool.begin_read(layer) for pool, _ in self._pools)
        return pools + sum(_stored(segment).begin_read(layer) for segment, _ in self._readings)


def _stored(segment: Segment) -> SegmentCache:
    assert segment.cache is not None, "a segment above a sequence in decode is cached"
    return segment.cache


def _join(parts: Iterable[Attended]) -> Attended:
    return Attended(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _merge_rows_(total: Attended, rows: slice | Tensor, part: Attended) -> None:
    """Add to some rows of `total`, in place, what they attended to elsewhere."""
    read = total.rows(rows)
    merge_(read, part)
    if not isinstance(rows, slice):  # of a slice, `read` is a view
        for tensor, changed in zip(total, read, strict=True):
            tensor[rows] = changed


def _readers(members: Iterable[Decoding]) -> list[tuple[Segment, list[int]]]:
    """Segments, each with the rows of the members that share it."""
    readers: dict[int, tuple[Segment, list[int]]] = {}
    for row, member in enumerate(members):
        for segment in member.segments:
            readers.setdefault(id(segment), (segment, []))[1].append(row)
    return list(readers.values())
