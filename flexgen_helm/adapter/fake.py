"""A backend without a model: results are made up from a digest of the request.

It answers like a real engine (same shapes, stops, finish reasons, log-probabilities that depend
on the tokens before) and always the same, so HELM can be run end to end in seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from flexgen_helm.adapter.backend import EngineSettings, Identity, OnError, OnResult
from flexgen_helm.errors import EngineClosedError, InvalidRequestError
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.request import (
    Completion,
    EngineDescription,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from flexgen_helm.specs.statistics import RequestStatistics

WORDS = (" yes", " no", " A", " B", " [", " ]", " )", " red", " cat", ".", ",", "\n")
MAX_POSITIONS = 2048
SECONDS_PER_TOKEN = 1e-6
CACHE_BYTES_PER_TOKEN = 1000


class FakeBackend:
    """Makes `FakeEngine`s; any text will do as their checkpoint."""

    def identify(self, settings: EngineSettings) -> Identity:
        return Identity(
            fingerprint=_digest(settings.checkpoint).hex(),
            compression=Compression.parse(settings.compression).label,
            dtype="float32" if settings.dtype == "auto" else settings.dtype,
        )

    def begin_load(self, settings: EngineSettings) -> None:
        pass

    def load(self, settings: EngineSettings) -> FakeEngine:
        identity = self.identify(settings)
        return FakeEngine(
            EngineDescription(
                model=settings.checkpoint,
                fingerprint=identity.fingerprint,
                compression=identity.compression,
                dtype=identity.dtype,
                device="cpu",
                num_parameters=1000,
                weight_bytes=4000,
                linear_weight_bytes=3000,
            )
        )


class FakeEngine:
    """Answers from digests instead of a model."""

    max_positions = MAX_POSITIONS

    def __init__(self, description: EngineDescription) -> None:
        self.description = description
        self._closed = False

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
    ) -> list[GenerationResult]:
        if self._closed:
            raise EngineClosedError("the fake engine is closed: load it again")
        served = [i for i, request in enumerate(requests) if self._is_valid(i, request, on_error)]
        results = []
        for index in served:
            results.append(self._answer(requests[index], effective_batch=len(requests)))
            if on_result is not None:
                on_result(index, results[-1])
        return results

    def _is_valid(self, index: int, request: GenerationRequest, on_error: OnError | None) -> bool:
        num_tokens = len(request.prompt_token_ids)
        if num_tokens <= self.max_positions:
            return True
        error = InvalidRequestError(
            f"prompt has {num_tokens} tokens, the model has {self.max_positions} positions:"
            " shorten it"
        )
        if on_error is None:
            raise error
        on_error(index, error)
        return False

    def close(self) -> None:
        self._closed = True

    def _answer(self, request: GenerationRequest, *, effective_batch: int) -> GenerationResult:
        sampling = request.sampling
        base = f"{self.description.fingerprint} {self.description.compression}"
        base += f" {request.prompt_token_ids}"
        completions = tuple(
            _complete(_salt(base, sampling, index), sampling)
            for index in range(sampling.num_completions)
        )
        num_generated = sum(len(completion.token_ids) for completion in completions)
        return GenerationResult(
            completions=completions,
            prompt_logprobs=_prompt_logprobs(request),
            statistics=_statistics(request, num_generated, effective_batch),
        )


def _salt(base: str, sampling: SamplingParams, index: int) -> str:
    """Greedy completions depend on the prompt alone, sampled ones on their draw as well."""
    return base if sampling.greedy else f"{base} {sampling.temperature} {sampling.seed} {index}"


def _complete(salt: str, sampling: SamplingParams) -> Completion:
    texts: list[str] = []
    ids: list[int] = []
    reason: FinishReason = "length"
    for position in range(sampling.max_tokens):
        choice = _digest(f"{salt} {position}")[0] % (len(WORDS) + 1)
        if choice == len(WORDS):
            reason = "endoftext"
            break
        texts.append(WORDS[choice])
        ids.append(choice)
        if any(stop in "".join(texts) for stop in sampling.stops):
            reason = "stop"
            texts = _cut(texts, sampling.stops)
            ids = ids[: len(texts)]
            break
    return Completion(
        token_ids=tuple(ids),
        token_texts=tuple(texts),
        logprobs=tuple(_logprob(f"{salt} {position}") for position in range(len(ids))),
        text="".join(texts),
        finish_reason=reason,
    )


def _cut(texts: list[str], stops: Sequence[str]) -> list[str]:
    """Shares of the text before the first stop."""
    text = "".join(texts)
    left = min(text.index(stop) for stop in stops if stop in text)
    shares = []
    for share in texts:
        shares.append(share[:left])
        left -= len(shares[-1])
        if not left:
            break
    return [share for share in shares if share]


def _prompt_logprobs(request: GenerationRequest) -> tuple[float | None, ...] | None:
    if not request.prompt_logprobs:
        return None
    ids = request.prompt_token_ids
    return (None, *(_logprob(f"{ids[:end]}") for end in range(2, len(ids) + 1)))


def _statistics(
    request: GenerationRequest, num_generated: int, effective_batch: int
) -> RequestStatistics:
    num_prompt = len(request.prompt_token_ids)
    return RequestStatistics(
        num_prompt_tokens=num_prompt,
        num_generated_tokens=num_generated,
        computed_prompt_tokens=num_prompt,
        padding_rows=0,
        decode_rows=max(0, num_generated - 1),
        decode_products=max(0, num_generated - 1) / effective_batch,
        prefill_s=num_prompt * SECONDS_PER_TOKEN,
        decode_s=num_generated * SECONDS_PER_TOKEN,
        effective_batch=effective_batch,
        cache_bytes=(num_prompt + num_generated) * CACHE_BYTES_PER_TOKEN,
        cached_tokens=num_prompt + num_generated,
        peak_memory_bytes=4000,
    )


def _logprob(text: str) -> float:
    return -(1 + _digest(text)[0]) / 64


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
