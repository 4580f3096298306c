"""A request on its way through a block."""

from __future__ import annotations

from flexgen_helm.model.kv_cache import KVCache
from flexgen_helm.runtime.sequence import Sequence
from flexgen_helm.specs.request import GenerationRequest, GenerationResult, RequestStatistics


class Job:
    """A request, its completions in the making, and what they have cost so far.

    Args:
        index: place of the request among those the engine was given.
        request: the request.
        sequences: one per completion.
    """

    def __init__(self, index: int, request: GenerationRequest, sequences: list[Sequence]) -> None:
        self.index = index
        self.request = request
        self.sequences = sequences
        self.prompt_logprobs: tuple[float | None, ...] | None = None
        self.prefill_s = 0.0
        self._cache_bytes = 0
        self._cached_tokens = 0

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def finished(self) -> bool:
        return all(sequence.finished for sequence in self.sequences)

    def share_cache(self, prompt_cache: KVCache | None) -> None:
        """Give every completion that goes on its own copy of the prompt's cache."""
        unfinished = [sequence for sequence in self.sequences if not sequence.finished]
        for number, sequence in enumerate(unfinished):
            assert prompt_cache is not None, "a prompt whose completions go on has a cache"
            is_last = number == len(unfinished) - 1
            sequence.cache = prompt_cache if is_last else prompt_cache.fork()

    def release_cache(self, sequence: Sequence) -> None:
        """Free the cache of a finished sequence, after noting its size."""
        if sequence.cache is not None:
            self._cache_bytes += sequence.cache.num_bytes
            self._cached_tokens += sequence.position
            sequence.cache = None

    def result(self, *, effective_batch: int, peak_memory_bytes: int) -> GenerationResult:
        """Return the result of a finished job."""
        return GenerationResult(
            completions=tuple(sequence.completion() for sequence in self.sequences),
            prompt_logprobs=self.prompt_logprobs,
            statistics=RequestStatistics(
                num_prompt_tokens=self.prompt_len,
                num_generated_tokens=sum(len(s.generated) for s in self.sequences),
                computed_prompt_tokens=self.prompt_len,
                padding_rows=0,
                decode_rows=sum(s.decode_rows for s in self.sequences),
                decode_products=sum(s.decode_products for s in self.sequences),
                prefill_s=self.prefill_s,
                decode_s=sum(s.decode_s for s in self.sequences),
                effective_batch=effective_batch,
                cache_bytes=self._cache_bytes,
                cached_tokens=self._cached_tokens,
                peak_memory_bytes=peak_memory_bytes,
            ),
        )
