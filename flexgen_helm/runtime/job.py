"""A request on its way through the engine."""

from __future__ import annotations

from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.sequence import Sequence, max_new_tokens
from flexgen_helm.runtime.statistics import Cost, Peak
from flexgen_helm.specs.request import GenerationRequest, GenerationResult
from flexgen_helm.specs.statistics import RequestStatistics


class Job:
    """A request, its completions in the making, and what they have cost so far.

    Args:
        index: place of the request among those the engine was given.
        request: the request.
        model: what computes it.
    """

    def __init__(self, index: int, request: GenerationRequest, model: Model) -> None:
        self.index = index
        self.request = request
        self.max_new_tokens = max_new_tokens(request, model.spec.max_positions)
        self.sequences = [
            Sequence(
                request,
                completion_index,
                model.tokenizer,
                eos_token_ids=model.spec.eos_token_ids,
                max_positions=model.spec.max_positions,
            )
            for completion_index in range(request.sampling.num_completions)
        ]
        self.prompt_logprobs: tuple[float | None, ...] | None = None
        self.computed_prompt_tokens = 0.0
        self._prefill = Cost()
        self._prefill_peak_bytes: int | None = None
        self._effective_batch = 0
        self._cache_bytes_per_token = model.cache_format.bytes_per_token
        self._cached_tokens = 0.0

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_decoding(self) -> int:
        """Sequences that may go on after their first token."""
        return len(self.sequences) if self.max_new_tokens > 1 else 0

    @property
    def finished(self) -> bool:
        return all(sequence.finished for sequence in self.sequences)

    def add_prefill(self, cost: Cost, *, effective_batch: int, peak_bytes: int) -> None:
        """Note what its prompt cost, how many sequences the pass served, and the peak till then."""
        self._prefill = cost
        self._prefill_peak_bytes = peak_bytes
        self._effective_batch = effective_batch

    def add_cached(self, num_tokens: float) -> None:
        """Note what a finished sequence had in the KV cache, its share of what it shared."""
        self._cached_tokens += num_tokens

    def result(self, *, policy: str, peak: Peak) -> GenerationResult:
        """Return the result of a finished job."""
        cached_tokens = round(self._cached_tokens)
        decode = sum((s.decode for s in self.sequences), Cost())
        cost = self._prefill + decode
        return GenerationResult(
            completions=tuple(sequence.completion() for sequence in self.sequences),
            prompt_logprobs=self.prompt_logprobs,
            statistics=RequestStatistics(
                num_prompt_tokens=self.prompt_len,
                num_generated_tokens=sum(len(s.generated) for s in self.sequences),
                computed_prompt_tokens=self.computed_prompt_tokens,
                padding_rows=cost.padding_rows,
                decode_rows=sum(s.decode_rows for s in self.sequences),
                decode_products=sum(s.decode_products for s in self.sequences),
                prefill_s=self._prefill.seconds,
                decode_s=decode.seconds,
                disk_wait_s=cost.disk_wait_s,
                link_wait_s=cost.link_wait_s,
                decode_to_device_bytes=round(decode.to_device_bytes),
                effective_batch=self._effective_batch,
                cache_bytes=cached_tokens * self._cache_bytes_per_token,
                cached_tokens=cached_tokens,
                peak_memory_bytes=peak.memory_bytes,
                prefill_peak_bytes=self._prefill_peak_bytes,
                peak_host_bytes=peak.host_bytes,
                peak_disk_bytes=peak.disk_bytes,
                policy=policy,
            ),
        )
