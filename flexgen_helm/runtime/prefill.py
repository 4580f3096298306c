"""A micro-batch of packed prompt tokens on its way through the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexgen_helm.batching.packing import PackedMicroBatch, Rows
from flexgen_helm.batching.readings import NO_SEGMENT
from flexgen_helm.model.attention import Attended, attend_rows, merge_
from flexgen_helm.model.kv_cache import CachePool, KeysByHead, KeysValues
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.runtime.chains import bounds, chain_batches
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.segments import Segment

MOST_NEEDED = 8
"""Rows of a chain up to which the last layer computes only what these attend to."""


@dataclass(frozen=True, kw_only=True)
class PoolWrite:
    """Rows whose keys and values go into a pool, for the sequences that will decode."""

    pool: CachePool
    cells: RowCells


_Reading = tuple[list[Segment], slice]
"""Segments, read as if they were one, and the rows that read them."""


class CarriedOn:
    """Keys and values of a layer that micro-batches leave for the next one each.

    In two places, of which one is read while the other is written. They are the same for all
    layers: made anew among what a layer takes and gives back, they would leave holes that make the
    heap grow by a hundred megabytes.

    Args:
        rows: per micro-batch, those it leaves of what it sees.
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self._rows = rows
        self._most_rows = max(map(len, rows))
        self._places: dict[int, KeysValues] = {}

    def leave(self, number: int, visible: KeysValues) -> None:
        """Keep a copy of what a micro-batch leaves of what it sees, [n, e] each."""
        rows = self._rows[number]
        if not len(rows):
            return
        if (place := self._places.get(number % 2)) is None:
            shape = self._most_rows, visible.keys.shape[1]
            place = self._places[number % 2] = KeysValues(*(x.new_empty(shape) for x in visible))
        for kept, seen in zip(place.rows(slice(len(rows))), visible, strict=True):
            torch.index_select(seen, 0, rows, out=kept)

    def before(self, number: int) -> KeysValues | None:
        """Return what the micro-batch before one has left; `None` if it was nothing."""
        num_rows = len(self._rows[number - 1]) if number else 0
        return self._places[(number - 1) % 2].rows(slice(num_rows)) if num_rows else None


class PrefillMicroBatch:
    """Rows of a packed tree, and what they attend to.

    Args:
        packed: which rows, and who sees whom.
        prompts: per position of the block, the prompt.
        segments: of the whole block.
        pool_writes: what to store for decode.
        needed: rows whose last hidden state is needed.
        last_reads: segments that no later micro-batch reads.
        number: of the micro-batch.
        carried_on: what the one before has left, and where this one leaves it.
        model: what computes them.
    """

    def __init__(
        self,
        packed: PackedMicroBatch,
        prompts: Sequence[Sequence[int]],
        segments: Sequence[Segment],
        pool_writes: Sequence[PoolWrite],
        needed: Rows,
        last_reads: Sequence[Segment],
        number: int,
        carried_on: CarriedOn,
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
        self._last_reads = last_reads
        self._number, self._carried_on = number, carried_on
        self._chains = chain_batches(packed.places, needed, model.device)
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
            (read, bounds(needed, readers)) for read, readers in self._readings
        ]
        self._few_needed = all(chains.most_needed <= MOST_NEEDED for chains in self._chains)

    num_reads = 1

    def begin_attention(
        self,
        layer: int,
        queries: Tensor,
        new: KeysValues,
        *,
        last: bool,
        next_read: Callable[[], None],  # noqa: ARG002 - there is none
    ) -> Callable[[], Tensor]:
        """Attend to all a row sees, [n, e] -> [n, e]; stores keys and values for later.

        It is done when this returns. In the last layer only needed rows come out.
        """
        attend = self._attend_needed if last else self._attend
        attended = attend(layer, queries, new)
        for segment in self._last_reads:
            segment.forget_computed()
        return lambda: attended

    def _attend(self, layer: int, queries: Tensor, new: KeysValues) -> Tensor:
        k, v = self._store(layer, new)
        q, total = self._begin(queries)
        for chains in self._chains:
            chains.attend(q, k, v, total)
        self._read(layer, self._readings, q, total)
        return total.values.flatten(1)

    def _attend_needed(self, layer: int, queries: Tensor, new: KeysValues) -> Tensor:
        if not self._few_needed:
            return self._attend(layer, queries, new)[self.needed]
        k, v = self._store(layer, new)
        q, total = self._begin(queries[self.needed])
        for chains in self._chains:
            chains.attend_needed(q, k, v, total)
        self._read(layer, self._needed_readings, q, total)
        return total.values.flatten(1)

    def begin_read(self, layer: int, number: int) -> int:  # noqa: ARG002
        """Do nothing: all that is attended to is in memory."""
        return 0

    def _store(self, layer: int, new: KeysValues) -> tuple[Tensor, Tensor]:
        """Keep keys and values for later; return those the rows see outside of segments."""
        visible = self._with_carried(new)
        self._carried_on.leave(self._number, visible)
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
        carried = self._carried_on.before(self._number)
        if carried is None:
            return new
        return KeysValues(*(torch.cat(both) for both in zip(carried, new, strict=True)))

    def _heads(self, rows: Tensor) -> Tensor:
        """[n, e] -> [n, h, d]."""
        return rows.unflatten(1, (self._num_heads, -1))
