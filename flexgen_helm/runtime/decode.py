"""Micro-batches of sequences in decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from flexgen_helm.model.attention import Attended, attend_rows, merge_
from flexgen_helm.model.kv_cache import KeysValues, SegmentCache
from flexgen_helm.model.row_cells import row_index
from flexgen_helm.model.sparse_attention import LargestScores, attend_shared_top
from flexgen_helm.offload.link import Lane
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.pool import Decoding, Pool, PoolInputs
from flexgen_helm.runtime.segments import Segment
from flexgen_helm.runtime.shared_reads import SharedReads


class DecodeMicroBatch:
    """Pools that pass through a layer together, one new token a sequence.

    Args:
        pools: those in it.
        model: what computes it.
        shared_reads: of the pass.
    """

    needed: Tensor | None = None
    """All rows."""

    def __init__(self, pools: Sequence[Pool], model: Model, shared_reads: SharedReads) -> None:
        self.sequences = [sequence for pool in pools for sequence in pool.sequences]
        self.token_ids = model.indices([s.generated[-1] for s in self.sequences])
        self.positions = model.indices([s.position for s in self.sequences])
        self._model = model
        self._num_heads = model.spec.num_heads
        self._pools: list[tuple[Pool, slice]] = []
        self._pool_inputs: list[PoolInputs] = []
        start = 0
        for pool in pools:
            self._pool_inputs.append(pool.begin_token())
            self._pools.append((pool, slice(start, start + len(pool.members))))
            start += len(pool.members)
        percent = model.compression.attention_percent
        num_attended = [
            -(-sequence.position * percent // 100) for sequence in self.sequences if percent
        ]
        self._most_attended = max(num_attended, default=0)
        """Past positions that a row attends to at most; 0 where each attends to all of them."""
        self._num_attended = model.indices(num_attended) if percent else None
        """Those of each row."""
        readers = _readers(member for pool in pools for member in pool.members)
        self._readings = [
            (_stored(segment), row_index(rows, model.device)) for segment, rows in readers
        ]
        self._shared_reads = shared_reads
        for cache, _ in self._readings:
            shared_reads.add_reader(cache)

    def repeats(self, earlier: DecodeMicroBatch) -> bool:
        """Whether it takes the same kernels as one of an earlier token, in the same memory.

        Except for sequences that have ended since.
        """
        return [pool for pool, _ in self._pools] == [pool for pool, _ in earlier._pools]

    def take_over(self, later: DecodeMicroBatch) -> slice | Tensor:
        """Overwrite the tokens with those of one that `repeats` this; return the rows they have.

        Rows of sequences that have ended since keep theirs.
        """
        device = self.token_ids.device
        row_of = {id(sequence): row for row, sequence in enumerate(self.sequences)}
        numbers = [row_of[id(sequence)] for sequence in later.sequences]
        rows = row_index(numbers, device)
        self.token_ids[rows] = later.token_ids
        self.positions[rows] = later.positions
        for (_, mine), (_, theirs), inputs, new in zip(
            self._pools, later._pools, self._pool_inputs, later._pool_inputs, strict=True
        ):
            members = row_index([number - mine.start for number in numbers[theirs]], device)
            inputs.cells.positions[members] = new.cells.positions
            inputs.ends.copy_(new.ends)
        return rows

    def begin_attention(
        self,
        layer: int,
        queries: Tensor,
        new: KeysValues,
        *,
        last: bool,  # noqa: ARG002 - all rows come out of all layers
        next_read: Callable[[], None],
    ) -> Callable[[], Tensor]:
        """Begin attention of all rows in a layer, [n, e] -> [n, e]; what is returned waits for it.

        What sequences share is read once for all of them, whichever pools they are in. Calls
        `next_read` when it comes to what any but the first read brings.
        """
        q = queries.unflatten(1, (self._num_heads, -1))
        if self._most_attended:
            attended = self._attend_top(layer, q, new)
            return lambda: attended.values.flatten(1)
        if self._model.attends_apart:
            return self._begin_on_host(layer, q, new)
        if not self._model.reads_one_by_one:
            next_read = _nothing
        total = self._attend_own(layer, q, new, next_read)
        if self._readings:
            next_read()
        for readers, part in self._shared(layer, q):
            _merge_rows_(total, readers, part)
        return lambda: total.values.flatten(1)

    def _begin_on_host(self, layer: int, q: Tensor, new: KeysValues) -> Callable[[], Tensor]:
        """Have the host attend to what each sequence has of its own, the device to the rest."""
        link = self._model.link
        assert link is not None, "host and device are apart"
        copies = [link.down(rows, Lane.ATTENTION) for rows in (q, *new)]

        def attend() -> Attended:
            queries, keys, values = (copy.wait() for copy in copies)
            attended = self._attend_own(layer, queries, KeysValues(keys, values), _nothing)
            return Attended(*map(link.pinned, attended))

        own, shared = link.beside(Lane.ATTENTION, attend), [*self._shared(layer, q)]

        def finish() -> Tensor:
            total = Attended(*(link.up(x, Lane.ATTENTION).use() for x in own.result()))
            for readers, part in shared:
                _merge_rows_(total, readers, part)
            return total.values.flatten(1)

        return finish

    def _attend_own(
        self, layer: int, q: Tensor, new: KeysValues, next_read: Callable[[], None]
    ) -> Attended:
        """Attention to what each sequence has of its own, where that is."""
        parts = []
        for index, (pool, rows) in enumerate(self._pools):
            if index:
                next_read()
            parts.append(pool.attend(layer, q[rows], new.rows(rows)))
        return _join(parts)

    def _shared(self, layer: int, q: Tensor) -> Iterator[tuple[slice | Tensor, Attended]]:
        """Attention to what several sequences share, with the rows of these."""
        for cache, readers in self._readings:
            both = self._shared_reads.read(cache, layer)
            yield readers, attend_rows(q[readers], *both)

    def _attend_top(self, layer: int, q: Tensor, new: KeysValues) -> Attended:
        most = self._most_attended
        assert self._num_attended is not None, "it attends to a part"
        largest = LargestScores(self._num_attended, most, self._num_heads)
        tops = []
        for pool, rows in self._pools:
            tops.append(pool.find_top(layer, q[rows], most))
            largest.add(rows, tops[-1].scores)
        shared = [
            (readers, self._shared_reads.read(cache, layer)) for cache, readers in self._readings
        ]
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

    @property
    def num_reads(self) -> int:
        """Reads in a layer: one of each pool, and one of what is shared; or one of all."""
        if not self._model.reads_one_by_one:
            return 1
        return len(self._pools) + bool(self._readings)

    def begin_read(self, layer: int, number: int) -> int:
        """Begin to read what is attended to in a layer and is not in memory.

        Returns the bytes of memory that this takes.
        """
        pools, readings = self._pools, self._readings
        if self._model.reads_one_by_one:
            own = number < len(pools)
            pools, readings = (pools[number : number + 1], []) if own else ([], readings)
        begun = sum(pool.begin_read(layer) for pool, _ in pools)
        return begun + sum(self._shared_reads.begin(cache, layer) for cache, _ in readings)


def _nothing() -> None:
    """Do as `next_read` where all is one read."""


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
