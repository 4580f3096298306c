"""The executor: block after block, pass after pass over the weights (see `model_pass`).

A pass serves prompts of new blocks and one token of each sequence in decode, wherever weights, KV
cache and activations are. Its oracle, which shares and offloads nothing, is in the tests.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flexgen_helm.batching.blocks import BlockBudget, Demand, PendingRequests
from flexgen_helm.notices import FlexGenWarning
from flexgen_helm.runtime.cuda_graphs import CaptureError
from flexgen_helm.runtime.decode import DecodeMicroBatch
from flexgen_helm.runtime.head import Head
from flexgen_helm.runtime.job import Job
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.memory_watch import MemoryWatch, is_out_of_memory
from flexgen_helm.runtime.model_pass import MicroBatch, ModelPass, num_rows
from flexgen_helm.runtime.pool import Pool
from flexgen_helm.runtime.pool_packing import group, repack
from flexgen_helm.runtime.prefill_block import PrefillBlock
from flexgen_helm.runtime.repeated_passes import RepeatedPasses
from flexgen_helm.runtime.segments import KeptPrefix
from flexgen_helm.runtime.sequence import max_new_tokens
from flexgen_helm.runtime.shared_reads import SharedReads
from flexgen_helm.runtime.statistics import (
    Cost,
    free_memory_bytes,
    peak_memory_bytes,
    peak_so_far,
)
from flexgen_helm.specs import chunks
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest, GenerationResult
from flexgen_helm.units import format_bytes

JOIN_SHARE = 0.25
"""Part of the room that must be free before new sequences join those in decode, if more of them
could then: every join costs micro-batches of its own."""

LEAST_MICRO_BATCH_TOKENS = 16
"""Prompt tokens computed together, however short memory is."""

OnResult = Callable[[int, GenerationResult], None]


class _Queue:
    """Pending requests of one kind, and what their last block has left for the next."""

    def __init__(self, pending: PendingRequests) -> None:
        self.pending = pending
        self.kept: KeptPrefix | None = None


class BlockExecutor:
    """Computes requests, in blocks as large as memory allows.

    Where memory turns out to be short, micro-batches and cache become smaller, with a warning, and
    what was under way when it was full is computed again.

    Args:
        model: what computes.
        policy: shape of blocks and memory for them.
        cache_tokens: tokens there is memory for; `None` if nobody has said.
        watch: notices when more memory is used than was planned; `None` if there is no limit.
    """

    def __init__(
        self,
        model: Model,
        policy: Policy,
        cache_tokens: int | None = None,
        watch: MemoryWatch | None = None,
    ) -> None:
        self._model = model
        self.policy = policy
        """As given, or with smaller micro-batches."""
        self._watch = watch
        self._head = Head(model)
        self._pools: list[Pool] = []
        self._repeated = RepeatedPasses(model.capture)
        self._num_blocks = 0
        spec = model.spec
        self._most_kept = chunks.most_kept(
            spec.hidden_size, spec.num_layers, model.cache_format.dtype.itemsize
        )
        self.cache_tokens = _cache_limit(model, policy, cache_tokens)
        """Tokens the KV cache may hold."""

    @torch.inference_mode()
    def run(self, requests: Mapping[int, GenerationRequest], on_result: OnResult) -> None:
        """Compute requests, by index; `on_result` gets each result as soon as it is known.

        Raises:
            NumericsError: the model computed NaN.
        """
        pending = dict(requests)

        def finish(index: int, result: GenerationResult) -> None:
            del pending[index]
            on_result(index, result)

        while pending:
            try:
                self._run(dict(pending), finish)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if not self._repeated.give_up() and not self._shrink(0.5, str(error)):
                    raise
            else:
                break
            # Only here does the error hold nothing of what was under way any more.
            self._pools = []
            gc.collect()

    def _run(self, requests: Mapping[int, GenerationRequest], on_result: OnResult) -> None:
        demands = {index: self._demand(request) for index, request in requests.items()}
        decoding, prefill_only = (
            self._queue(
                {i: d for i, d in demands.items() if bool(d.sequences) == decodes}, requests
            )
            for decodes in (True, False)
        )
        while decoding.pending or prefill_only.pending or self._pools:
            start_s, waited = time.perf_counter(), self._model.waited
            copied = self._model.to_device_bytes
            blocks = self._admit(decoding, prefill_only, requests)
            decode = self._run_pass(blocks)
            now = self._model.waited
            cost = Cost(
                seconds=time.perf_counter() - start_s,
                disk_wait_s=now.disk_s - waited.disk_s,
                link_wait_s=now.link_s - waited.link_s,
                to_device_bytes=self._model.to_device_bytes - copied,
            )
            self._account(blocks, decode, cost)
            self._retire([block for _, block in blocks], on_result)
            del blocks, decode  # or what has ended would be in memory beside what comes next
            if self._watch is not None and (excess := self._watch.new_excess()):
                self._shrink(0.75, f"{format_bytes(excess)} more were used than the budget allows")

    def _shrink(self, cache_share: float, reason: str) -> bool:
        """Halve micro-batches, and cut the KV cache; return whether they could be larger."""
        size, tokens = self.policy.micro_batch_size, self.policy.micro_batch_tokens
        if size == 1 and tokens <= LEAST_MICRO_BATCH_TOKENS:
            return False
        size, tokens = max(1, size // 2), max(min(tokens, LEAST_MICRO_BATCH_TOKENS), tokens // 2)
        self.policy = replace(self.policy, micro_batch_size=size, micro_batch_tokens=tokens)
        self.cache_tokens = max(1, int(self.cache_tokens * cache_share))
        warnings.warn(
            f"memory is short ({reason}): going on with micro_batch_size={size},"
            f" micro_batch_tokens={tokens} and {self.cache_tokens} tokens in the KV cache",
            FlexGenWarning,
            stacklevel=2,
        )
        return True

    def _demand(self, request: GenerationRequest) -> Demand:
        """What a request takes; without a second token nothing is cached for it."""
        new_tokens = max_new_tokens(request, self._model.spec.max_positions)
        sequences = request.sampling.num_completions if new_tokens > 1 else 0
        return Demand(sequences=sequences, new_tokens=max(0, new_tokens - 1))

    def _queue(
        self, demands: dict[int, Demand], requests: Mapping[int, GenerationRequest]
    ) -> _Queue:
        prompts = {index: requests[index].prompt_token_ids for index in demands}
        share = self.policy.share_prefixes
        return _Queue(PendingRequests(prompts, demands, share_prefixes=share))

    def _admit(
        self, decoding: _Queue, prefill_only: _Queue, requests: Mapping[int, GenerationRequest]
    ) -> list[tuple[_Queue, PrefillBlock]]:
        """Blocks to prefill in the next pass: new sequences, then what fills the pass up.

        Requests that need no cache are what a pass with few sequences in decode is filled with.
        """
        blocks = []
        rows = self.policy.num_micro_batches * self.policy.micro_batch_tokens
        budget = self._budget(rows)
        if self._is_worth_joining(budget, decoding) and (
            block := self._take(decoding, budget, requests)
        ):
            blocks.append((decoding, block))
            rows -= block.num_computed_tokens
        budget = BlockBudget(sequences=0, cached_tokens=0, prompt_tokens=rows)
        if rows > 0 and (block := self._take(prefill_only, budget, requests)):
            blocks.append((prefill_only, block))
        return blocks

    def _budget(self, prompt_tokens: int) -> BlockBudget:
        """Room that sequences in decode leave for new ones."""
        return BlockBudget(
            sequences=self.policy.effective_batch - sum(len(p.members) for p in self._pools),
            cached_tokens=self.cache_tokens - self._held_tokens(),
            prompt_tokens=prompt_tokens,
        )

    def _is_worth_joining(self, budget: BlockBudget, queue: _Queue) -> bool:
        """Whether new sequences join those in decode, and do not wait for more room."""
        enough = (
            budget.sequences >= JOIN_SHARE * self.policy.effective_batch
            and budget.cached_tokens >= JOIN_SHARE * self.cache_tokens
        )
        return not self._pools or enough or not queue.pending.gains_by_waiting(budget)

    def _held_tokens(self) -> int:
        """Tokens the caches of sequences in decode have room for."""
        members = (member for pool in self._pools for member in pool.members)
        segments = {id(s): s.num_tokens for member in members for s in member.segments}
        return sum(pool.num_tokens for pool in self._pools) + sum(segments.values())

    def _take(
        self, queue: _Queue, budget: BlockBudget, requests: Mapping[int, GenerationRequest]
    ) -> PrefillBlock | None:
        # While sequences are in decode, what does not fit can wait for them to finish.
        at_least = 0 if self._pools else 1
        while True:
            cut = queue.pending.take(
                budget, at_least=at_least, min_kept=chunks.MIN_KEPT, max_kept=self._most_kept
            )
            if not cut.requests:
                return None
            jobs = [Job(index, requests[index], self._model) for index in cut.requests]
            block = PrefillBlock(
                cut, jobs, queue.kept, self._num_blocks + 1, self._model, self.policy
            )
            excess = block.cached_tokens / max(1, budget.cached_tokens)
            if excess <= 1 or not block.num_decoding or len(jobs) == at_least:
                break
            queue.pending.put_back()
            fewer = min(block.num_decoding - 1, int(block.num_decoding / excess))
            budget = replace(budget, sequences=fewer)
        self._num_blocks += 1
        self._repeated.forget()  # new prompts need the memory
        block.begin()
        return block

    def _run_pass(self, blocks: Sequence[tuple[_Queue, PrefillBlock]]) -> list[DecodeMicroBatch]:
        """Prefill blocks and add a token to each sequence in decode; return the latter."""
        shared_reads = SharedReads(self._model.spec.max_positions)
        decode = [
            DecodeMicroBatch(pools, self._model, shared_reads)
            for pools in group(
                self._pools,
                self.policy.micro_batch_size,
                at_once=not self._model.reads_one_by_one,
            )
        ]
        prefill = [micro_batch for _, block in blocks for micro_batch in block.micro_batches]
        model_pass = ModelPass(self._model, [*prefill, *decode], self.policy.activations)
        if blocks:
            outputs = model_pass.run([block for _, block in blocks])
        else:
            try:
                outputs = self._repeated.run(decode, model_pass.run)
            except CaptureError:
                return self._run_pass(blocks)
        for queue, block in blocks:
            queue.kept = block.finish([outputs.pop(0) for _ in block.micro_batches], self._head)
        self._draw(decode, outputs)
        return decode

    def _draw(self, decode: Iterable[DecodeMicroBatch], outputs: list[Tensor]) -> None:
        sequences = [sequence for micro_batch in decode for sequence in micro_batch.sequences]
        if sequences:
            self._head.draw(torch.cat(outputs), range(len(sequences)), sequences)

    def _account(
        self,
        blocks: Sequence[tuple[_Queue, PrefillBlock]],
        decode: Sequence[DecodeMicroBatch],
        cost: Cost,
    ) -> None:
        """Divide what a pass cost among those it served, by the tokens computed for each."""
        prefill = [micro_batch for _, block in blocks for micro_batch in block.micro_batches]
        micro_batches: list[MicroBatch] = [*prefill, *decode]
        num_decoding = sum(len(micro_batch.sequences) for micro_batch in decode)
        num_tokens = num_decoding + sum(block.num_computed_tokens for _, block in blocks)
        rows = num_rows(micro_batches) + self._repeated.idle_rows
        share = replace(cost, padding_rows=rows - num_tokens) / max(1, num_tokens)
        batch = num_decoding + sum(block.num_sequences for _, block in blocks)
        for micro_batch in decode:
            for sequence in micro_batch.sequences:
                sequence.add_decode(share, rows=len(micro_batch.token_ids))
        if not blocks:
            return
        peak_bytes = peak_memory_bytes(self._model.device)
        for _, block in blocks:
            for job in block.jobs:
                job.add_prefill(
                    share * job.computed_prompt_tokens,
                    effective_batch=batch,
                    peak_bytes=peak_bytes,
                )

    def _retire(self, blocks: Sequence[PrefillBlock], on_result: OnResult) -> None:
        """Report what has finished, free its cache and pack the rest anew."""
        finished = [job for block in blocks for job in block.jobs if job.finished]
        pools = self._pools + [pool for block in blocks for pool in block.pools]
        for pool in pools:
            for member in pool.drop_finished():
                member.job.add_cached(member.own_len + member.shared_tokens)
                if member.job.finished:
                    finished.append(member.job)
        self._pools = repack(pools, self.policy.micro_batch_size)
        if not finished:
            return
        on_disk = self._model.spill.peak_bytes if self._model.spill else 0
        peak = peak_so_far(self._model.device, disk_bytes=on_disk)
        policy = self.policy.brief
        for job in {job.index: job for job in finished}.values():
            on_result(job.index, job.result(policy=policy, peak=peak))


def _cache_limit(model: Model, policy: Policy, cache_tokens: int | None) -> int:
    """Tokens the KV cache may hold."""
    limits = [] if cache_tokens is None else [cache_tokens]
    if policy.cache_bytes is not None:
        limits.append(policy.cache_bytes // model.cache_format.bytes_per_token)
    if not limits:
        limits.append(free_memory_bytes(model.device) // 2 // model.cache_format.bytes_per_token)
    return min(limits)
