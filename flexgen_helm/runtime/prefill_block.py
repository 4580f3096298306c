"""A block made ready: its packed tree, what its nodes are attended to, and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from flexgen_helm.batching import blocks
from flexgen_helm.batching.packing import (
    KEPT,
    PackedTree,
    Place,
    Rows,
    is_kept_later,
    pack_tree,
)
from flexgen_helm.batching.prefix_tree import NO_NODE, build_tree
from flexgen_helm.batching.readings import NO_SEGMENT
from flexgen_helm.model.kv_cache import SegmentCache
from flexgen_helm.model.row_cells import RowCells, Stretch
from flexgen_helm.runtime.head import Head
from flexgen_helm.runtime.job import Job
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.pool import Decoding
from flexgen_helm.runtime.pool_packing import make_pools
from flexgen_helm.runtime.prefill import CarriedOn, PoolWrite, PrefillMicroBatch
from flexgen_helm.runtime.row_numbers import RowNumbers
from flexgen_helm.runtime.segments import KeptPrefix, Segment
from flexgen_helm.runtime.sequence import Sequence
from flexgen_helm.specs.policy import Policy


class PrefillBlock:
    """Requests in prefill.

    Args:
        cut: which requests, and what their prompts share.
        jobs: of these requests, by position.
        kept: what the block before has left for this one.
        number: counts blocks.
        model: what computes it.
        policy: sizes of micro-batches.
    """

    def __init__(
        self,
        cut: blocks.Block,
        jobs: Sequence_[Job],
        kept: KeptPrefix | None,
        number: int,
        model: Model,
        policy: Policy,
    ) -> None:
        self.jobs = jobs
        self._model = model
        self._kept = kept
        self._keep = cut.keep
        self._prompts = [job.request.prompt_token_ids for job in jobs]
        kept_len = kept.num_tokens if kept else 0
        nodes = build_tree(
            [job.prompt_len for job in jobs], cut.shared, kept=kept_len, keep=cut.keep
        )
        self._tree = pack_tree(
            nodes,
            [job.num_decoding for job in jobs],
            micro_batch_tokens=policy.micro_batch_tokens,
            kept=kept_len,
            keep=cut.keep,
        )
        self._ends = _end_places(self._tree, len(jobs))
        self._rows = RowNumbers(self._tree, kept_len)
        self._scored_before = list(
            accumulate((job.request.prompt_logprobs for job in jobs), initial=0)
        )
        self._needed = self._needed_rows()
        self._sharers = self._num_sharers()
        self._segments = [
            self._make_segment(self._tree.places[owner], decodes=sharers > 0)
            for owner, sharers in zip(self._tree.owners, self._sharers, strict=True)
        ]
        self._decodings = self._make_decodings(number)
        self._pool_size = policy.micro_batch_size

    @property
    def num_decoding(self) -> int:
        """Sequences that go on after their first token."""
        return len(self._decodings)

    @property
    def cached_tokens(self) -> int:
        """Tokens that its sequences will have in the KV cache, at most.

        More than what its prompts do not share, as a short prefix of few is stored for each.
        """
        own = sum(decoding.capacity for decoding in self._decodings)
        shared = {id(s): s.num_tokens for d in self._decodings for s in d.segments}
        return own + sum(shared.values())

    def begin(self) -> None:
        """Take memory, and make micro-batches."""
        self.pools = make_pools(self._decodings, self._pool_size, self._model)
        self.micro_batches = self._make_micro_batches()

    @property
    def num_computed_tokens(self) -> int:
        """Prompt tokens it computes."""
        return sum(micro_batch.num_rows for micro_batch in self.micro_batches)

    @property
    def num_sequences(self) -> int:
        return sum(len(job.sequences) for job in self.jobs)

    def end_layer(self, layer: int) -> None:
        """Be told that all micro-batches have passed a layer."""
        for pool in self.pools:
            pool.cache.end_prefill(layer)

    def finish(self, outputs: Sequence_[Tensor], head: Head) -> KeptPrefix | None:
        """Score prompts and draw first tokens; return what the next block shares.

        Args:
            outputs: per micro-batch, last hidden states of its needed rows.
            head: what draws and scores.
        """
        hidden = torch.cat([self._kept.hidden, *outputs] if self._kept else list(outputs))
        rows = self._hidden_rows()
        self._score(hidden, rows, head)
        self._draw(hidden, rows, head)
        self._share_cost()
        kept = self._keep_path(hidden, rows)
        for segment in self._segments:
            segment.end_prefill()
        return kept

    def _make_segment(self, place: Place, *, decodes: bool) -> Segment:
        cache_format, num_tokens = self._model.cache_format, len(place.chain)
        if place.micro_batch == KEPT:
            assert self._kept is not None, "kept places are those of a kept prefix"
            return self._kept.segment(
                place.node.start, place.node.end, cache_format, decodes=decodes
            )
        cache = SegmentCache(cache_format, num_tokens) if decodes else None
        if not self._is_kept_later(place):
            return Segment(num_tokens, cache, None)
        if cache is not None and not cache_format.compressed:
            return Segment(num_tokens, cache, cache)
        return Segment(num_tokens, cache, SegmentCache(cache_format.uncompressed, num_tokens))

    def _is_kept_later(self, place: Place) -> bool:
        return is_kept_later(place.node, len(self.jobs), self._keep)

    def _make_decodings(self, number: int) -> list[Decoding]:
        decodings = []
        for position, job in enumerate(self.jobs):
            end = self._tree.places[self._ends[position]]
            is_shared = end.segment != NO_SEGMENT
            path = self._tree.path(end.segment if is_shared else end.context)
            chain_len = 0 if is_shared else len(end.chain)
            for sequence in job.sequences[: job.num_decoding]:
                decodings.append(
                    Decoding(
                        sequence=sequence,
                        job=job,
                        order=(number, position),
                        segments=tuple(self._segments[segment] for segment in path),
                        shared_tokens=sum(
                            self._segments[s].num_tokens / self._sharers[s] for s in path
                        ),
                        chain_len=chain_len,
                        capacity=chain_len + job.max_new_tokens - 1,
                    )
                )
        return decodings

    def _num_sharers(self) -> list[int]:
        """Per segment, sequences that decode below it."""
        before = list(accumulate((job.num_decoding for job in self.jobs), initial=0))
        nodes = [self._tree.places[owner].node for owner in self._tree.owners]
        return [before[node.last] - before[node.first] for node in nodes]

    def _make_micro_batches(self) -> list[PrefillMicroBatch]:
        needed = self._rows.by_micro_batch(self._needed)
        writes = self._pool_writes()
        all_packed = self._tree.micro_batches
        leaves = [*(packed.carried for packed in all_packed[1:]), np.arange(0)]
        carried_on = CarriedOn([self._model.indices(rows) for rows in leaves])
        last_reads = self._last_reads()
        return [
            PrefillMicroBatch(
                packed,
                self._prompts,
                self._segments,
                writes[number],
                needed[number],
                last_reads[number],
                number,
                carried_on,
                self._model,
            )
            for number, packed in enumerate(all_packed)
        ]

    def _last_reads(self) -> list[list[Segment]]:
        """Per micro-batch, segments that it is the last to write or read."""
        last: dict[int, int] = {}
        for number, packed in enumerate(self._tree.micro_batches):
            written = {place.segment for place in packed.places} - {NO_SEGMENT}
            read = (segment for reading in packed.readings for segment in reading.segments)
            last |= dict.fromkeys((*written, *read), number)
        found: list[list[Segment]] = [[] for _ in self._tree.micro_batches]
        for segment, number in last.items():
            found[number].append(self._segments[segment])
        return found

    def _pool_writes(self) -> list[list[PoolWrite]]:
        """Per micro-batch, what it stores for the sequences that end in it."""
        writes: list[list[PoolWrite]] = [[] for _ in self._tree.micro_batches]
        for pool in self.pools:
            parts: dict[int, list[Stretch]] = {}
            for slot, member in enumerate(pool.members):
                end = self._tree.places[self._ends[member.order[1]]]
                if member.chain_len:
                    parts.setdefault(end.micro_batch, []).append(Stretch(slot, 0, end.chain))
            for micro_batch, stretches in parts.items():
                cells = RowCells.of(stretches, self._model.device)
                writes[micro_batch].append(PoolWrite(pool=pool.cache, cells=cells))
        return writes

    def _needed_rows(self) -> Rows:
        """Rows whose last hidden state is read: to draw, to score, or by a later block."""
        needed = np.zeros(self._rows.total, dtype=bool)
        for index, place in enumerate(self._tree.places):
            if self._is_kept_later(place) or self._is_scored(place):
                needed[self._rows.of(index)] = True
        for position, job in enumerate(self.jobs):
            if job.max_new_tokens:
                needed[self._last_row(position)] = True
        needed[: self._rows.num_kept] = True
        return np.flatnonzero(needed)

    def _hidden_rows(self) -> Rows:
        """Where the last hidden state of each row of the block is, if it was needed."""
        where = np.full(self._rows.total, -1)
        where[self._needed] = np.arange(len(self._needed))
        return where

    def _is_scored(self, place: Place) -> bool:
        """Whether a prompt that runs through it is to be scored."""
        return self._scored_before[place.node.last] > self._scored_before[place.node.first]

    def _last_row(self, position: int) -> int:
        return self._rows.of(self._ends[position]).stop - 1

    def _score(self, hidden: Tensor, where: Rows, head: Head) -> None:
        """Give each prompt that is to be scored its log-probabilities, computing each once."""
        rows: list[int] = []
        targets: list[int] = []
        bounds = [0]
        for index, place in enumerate(self._tree.places):
            node = place.node
            if self._is_scored(place):
                rows += where[self._rows.before(index)].tolist()
                targets += self._prompts[node.first][max(node.start, 1) : node.end]
            bounds.append(len(rows))
        logprobs = head.score(hidden, rows, targets)
        for position, job in enumerate(self.jobs):
            if job.request.prompt_logprobs:
                index, parts = self._ends[position], []
                while index != NO_NODE:
                    parts.append(logprobs[bounds[index] : bounds[index + 1]])
                    index = self._tree.places[index].node.parent
                job.prompt_logprobs = (None, *(x for part in reversed(parts) for x in part))

    def _draw(self, hidden: Tensor, where: Rows, head: Head) -> None:
        sequences: list[Sequence] = []
        rows: list[int] = []
        for position, job in enumerate(self.jobs):
            if job.max_new_tokens:
                sequences += job.sequences
                rows += [int(where[self._last_row(position)])] * len(job.sequences)
        head.draw(hidden, rows, sequences)

    def _share_cost(self) -> None:
        """Divide the tokens computed among the requests that have them in common."""
        shares: list[float] = []
        for place in self._tree.places:
            above = 0.0 if place.node.parent == NO_NODE else shares[place.node.parent]
            computed = 0 if place.micro_batch == KEPT else place.node.num_tokens
            shares.append(above + computed / place.node.num_prompts)
        for position, job in enumerate(self.jobs):
            job.computed_prompt_tokens = shares[self._ends[position]]

    def _keep_path(self, hidden: Tensor, where: Rows) -> KeptPrefix | None:
        if not self._keep:
            return None
        path = [i for i, place in enumerate(self._tree.places) if self._is_kept_later(place)]
        rows = np.concatenate([where[self._rows.of(index)] for index in path])
        segments = [self._segments[self._tree.places[index].segment] for index in path]
        kept_hidden = hidden[self._model.indices(rows)]
        return KeptPrefix.join(segments, kept_hidden, self._model.spec.num_layers)


def _end_places(tree: PackedTree, num_positions: int) -> list[int]:
    """Per position, index of the place its prompt ends in."""
    ends = [0] * num_positions
    for index, place in enumerate(tree.places):
        follower = tree.places[index + 1].node if index + 1 < len(tree.places) else None
        has_child = follower is not None and follower.parent == index
        # Prompts that end here sort before those that go on.
        after = follower.first if has_child and follower is not None else place.node.last
        ends[place.node.first : after] = [index] * (after - place.node.first)
    return ends
