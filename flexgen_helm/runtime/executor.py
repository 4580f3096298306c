"""The serial executor: one block at a time, step by step as the schedule says.

It is the oracle for every executor that overlaps or offloads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flexgen_helm.batching.blocks import Block
from flexgen_helm.errors import NumericsError
from flexgen_helm.model import opt
from flexgen_helm.model.attention import decode_attention, prefill_attention
from flexgen_helm.model.kv_cache import KeysValues, KVCache, append_packed, create_cache
from flexgen_helm.model.sampling import sample, token_logprobs
from flexgen_helm.offload.weights import EMBEDDINGS, WeightSource, layer_part
from flexgen_helm.runtime.detokenizer import Tokenizer
from flexgen_helm.runtime.job import Job
from flexgen_helm.runtime.schedule import block_schedule
from flexgen_helm.runtime.sequence import Sequence, max_new_tokens
from flexgen_helm.runtime.statistics import peak_memory_bytes
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest, GenerationResult

HEAD_ROWS = 512
"""Positions that go through the LM head at once; bounds the memory of their logits."""

OnResult = Callable[[int, GenerationResult], None]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model ready to compute."""

    spec: ModelSpec
    weights: WeightSource
    tokenizer: Tokenizer
    compression: Compression
    dtype: torch.dtype
    device: torch.device


class BlockExecutor:
    """Computes blocks.

    Args:
        model: what computes.
        policy: how live sequences are divided into micro-batches during decode.
    """

    def __init__(self, model: Model, policy: Policy) -> None:
        self._model = model
        self._policy = policy

    @torch.inference_mode()
    def run(self, block: Block, requests: list[GenerationRequest], on_result: OnResult) -> None:
        """Compute a block of `requests`; `on_result` gets each result as soon as it is known.

        Raises:
            NumericsError: the model computed NaN.
        """
        micro_batches = [[self._job(i, requests[i]) for i in mb] for mb in block.micro_batches]
        jobs = [job for micro_batch in micro_batches for job in micro_batch]
        num_sequences = sum(len(job.sequences) for job in jobs)
        report = partial(self._report, effective_batch=num_sequences, on_result=on_result)
        self._prefill(micro_batches)
        report([job for job in jobs if job.finished])
        self._decode([job for job in jobs if not job.finished], report)

    def _job(self, index: int, request: GenerationRequest) -> Job:
        sequences = [
            Sequence(
                request,
                completion_index,
                self._model.tokenizer,
                eos_token_ids=self._model.spec.eos_token_ids,
                max_positions=self._model.spec.max_positions,
            )
            for completion_index in range(request.sampling.num_completions)
        ]
        return Job(index, request, sequences)

    def _report(self, finished: list[Job], *, effective_batch: int, on_result: OnResult) -> None:
        peak = peak_memory_bytes(self._model.device)
        for job in finished:
            result = job.result(effective_batch=effective_batch, peak_memory_bytes=peak)
            on_result(job.index, result)

    def _prefill(self, micro_batches: list[list[Job]]) -> None:
        """Compute all prompts, and of each completion the first token."""
        start_s = time.perf_counter()
        token_ids = [
            [t for job in jobs for t in job.request.prompt_token_ids] for jobs in micro_batches
        ]
        positions = [[p for job in jobs for p in range(job.prompt_len)] for jobs in micro_batches]
        caches = [[self._prompt_cache(job) for job in jobs] for jobs in micro_batches]

        def attention(layer: int, micro_batch: int, queries: Tensor, new: KeysValues) -> Tensor:
            lengths = [job.prompt_len for job in micro_batches[micro_batch]]
            append_packed(caches[micro_batch], layer, new, lengths, self._model.compression)
            heads = self._model.spec.num_heads
            return prefill_attention(queries, new, lengths, num_heads=heads)

        all_hidden = self._pass(token_ids, positions, attention)
        for jobs, hidden in zip(micro_batches, all_hidden, strict=True):
            self._finish_prompts(jobs, hidden)
        for jobs, prompt_caches in zip(micro_batches, caches, strict=True):
            for job, cache in zip(jobs, prompt_caches, strict=True):
                job.share_cache(cache)
        seconds_per_token = (time.perf_counter() - start_s) / sum(map(len, token_ids))
        for job in (job for jobs in micro_batches for job in jobs):
            job.prefill_s = job.prompt_len * seconds_per_token

    def _decode(self, jobs: list[Job], report: Callable[[list[Job]], None]) -> None:
        """Add a token at a time to all completions until each has ended."""
        while jobs:
            live = [s for job in jobs for s in job.sequences if not s.finished]
            start_s = time.perf_counter()
            micro_batches = _repack(live, self._policy.micro_batch_size)
            self._decode_token(micro_batches)
            for sequences in micro_batches:
                for sequence in sequences:
                    sequence.decode_rows += 1
                    sequence.decode_products += 1 / len(sequences)
            seconds = (time.perf_counter() - start_s) / len(live)
            for sequence in live:
                sequence.decode_s += seconds
            for job in jobs:
                for sequence in job.sequences:
                    if sequence.finished:
                        job.release_cache(sequence)
            report([job for job in jobs if job.finished])
            jobs = [job for job in jobs if not job.finished]

    def _decode_token(self, micro_batches: list[list[Sequence]]) -> None:
        """Compute the token each sequence generated last, and draw its next."""
        token_ids = [[s.generated[-1] for s in sequences] for sequences in micro_batches]
        positions = [[s.position for s in sequences] for sequences in micro_batches]
        caches = [[_cache(s) for s in sequences] for sequences in micro_batches]

        def attention(layer: int, micro_batch: int, queries: Tensor, new: KeysValues) -> Tensor:
            own = caches[micro_batch]
            pasts = [cache.read(layer) for cache in own]
            append_packed(own, layer, new, [1] * len(own), self._model.compression)
            heads = self._model.spec.num_heads
            return decode_attention(queries, pasts, new, num_heads=heads)

        all_hidden = self._pass(token_ids, positions, attention)
        for sequences, hidden in zip(micro_batches, all_hidden, strict=True):
            self._draw(sequences, hidden)

    def _pass(
        self,
        token_ids: list[list[int]],
        positions: list[list[int]],
        attention: Callable[[int, int, Tensor, KeysValues], Tensor],
    ) -> list[Tensor]:
        """One pass over the weights: packed tokens per micro-batch -> last hidden states [n, e]."""
        spec, weights = self._model.spec, self._model.weights
        part = weights.fetch(EMBEDDINGS)
        hidden = [
            opt.embed(spec, part, self._indices(ids), self._indices(at))
            for ids, at in zip(token_ids, positions, strict=True)
        ]
        for step in block_schedule(spec.num_layers, len(hidden)):
            if step.begins_layer:
                part = weights.fetch(layer_part(step.layer))
            attend = partial(attention, *step)
            hidden[step.micro_batch] = opt.layer(spec, part, hidden[step.micro_batch], attend)
        return hidden

    def _finish_prompts(self, jobs: list[Job], hidden: Tensor) -> None:
        """Score prompts that want it, and draw first tokens, from the packed hidden states."""
        first_row = 0
        last_rows: list[int] = []
        unfinished: list[Sequence] = []
        for job in jobs:
            last_row = first_row + job.prompt_len - 1
            if job.request.prompt_logprobs:
                targets = job.request.prompt_token_ids[1:]
                job.prompt_logprobs = (None, *self._score(hidden[first_row:last_row], targets))
            for sequence in job.sequences:
                if not sequence.finished:
                    unfinished.append(sequence)
                    last_rows.append(last_row)
            first_row = last_row + 1
        self._draw(unfinished, hidden[self._indices(last_rows)])

    def _score(self, hidden: Tensor, targets: Iterable[int]) -> list[float]:
        """Log-probabilities of the token that follows each row of hidden states."""
        targets = list(targets)
        logprobs: list[float] = []
        for rows in hidden.split(HEAD_ROWS):
            chunk = targets[len(logprobs) : len(logprobs) + len(rows)]
            logprobs += token_logprobs(self._logits(rows), chunk)
        self._check_numbers(logprobs)
        return logprobs

    def _draw(self, sequences: list[Sequence], hidden: Tensor) -> None:
        """Draw the next token of each sequence from its row of hidden states."""
        for start in range(0, len(sequences), HEAD_ROWS):
            chunk = sequences[start : start + HEAD_ROWS]
            logits = self._logits(hidden[start : start + HEAD_ROWS])
            draws = sample(logits, [sequence.row for sequence in chunk])
            self._check_numbers([draw.logprob for draw in draws])
            for sequence, draw in zip(chunk, draws, strict=True):
                sequence.append(draw)

    def _logits(self, hidden: Tensor) -> Tensor:
        return opt.logits(self._model.spec, self._model.weights.fetch(EMBEDDINGS), hidden)

    def _check_numbers(self, logprobs: list[float]) -> None:
        # One NaN among the logits makes the log-probability of any token of its row NaN.
        if any(math.isnan(logprob) for logprob in logprobs):
            raise NumericsError(
                f"the model computed NaN with dtype={self._model.dtype} and"
                f" compression={self._model.compression.label}: use a dtype of wider range"
                " (bfloat16, float32) or milder compression"
            )

    def _prompt_cache(self, job: Job) -> KVCache | None:
        """Room for a prompt and its completion; none where no second token will be computed."""
        new_tokens = max_new_tokens(job.request, self._model.spec.max_positions)
        if new_tokens <= 1:
            return None
        return create_cache(
            self._model.spec,
            self._model.compression,
            capacity=job.prompt_len + new_tokens - 1,
            dtype=self._model.dtype,
            device=self._model.device,
        )

    def _indices(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


def _repack(sequences: list[Sequence], micro_batch_size: int) -> list[list[Sequence]]:
    """Divide live sequences into the fewest micro-batches, of equal size as far as possible."""
    num_micro_batches = -(-len(sequences) // micro_batch_size)
    return [sequences[index::num_micro_batches] for index in range(num_micro_batches)]


def _cache(sequence: Sequence) -> KVCache:
    assert sequence.cache is not None, "a sequence that goes on has a cache"
    return sequence.cache
