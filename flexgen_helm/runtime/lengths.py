"""How long the requests at hand are, for a plan."""

from __future__ import annotations

from collections.abc import Sequence

from flexgen_helm.batching.prefix_tree import prefix_order
from flexgen_helm.runtime.sequence import max_new_tokens
from flexgen_helm.specs.chunks import LEAST_FILLED
from flexgen_helm.specs.request import GenerationRequest
from flexgen_helm.specs.workload import RequestLengths, Workload

DEFAULT_WORKLOAD = Workload(
    name="some requests",
    scenarios=(
        RequestLengths(
            name="some requests",
            num_requests=512,
            prompt_len=512,
            max_prompt_len=512,
            new_tokens=32,
        ),
    ),
)
"""What is planned for as long as requests are not known."""


def workload_of(requests: Sequence[GenerationRequest], max_positions: int) -> Workload:
    """Return the lengths of requests, those that may generate about as much together.

    Args:
        requests: at least one.
        max_positions: of the model, which end a completion at the latest.
    """
    groups: dict[str, list[GenerationRequest]] = {}
    for request in requests:
        groups.setdefault(group_of(request), []).append(request)
    return Workload(
        name=f"{len(requests)} requests",
        scenarios=tuple(_lengths(name, group, max_positions) for name, group in groups.items()),
    )


def cached_tokens(request: GenerationRequest, max_positions: int) -> int:
    """Return the tokens a request may have in the KV cache, with all its completions."""
    new_tokens = max_new_tokens(request, max_positions)
    if new_tokens <= 1:
        return 0
    later = request.sampling.num_completions * (new_tokens - 1)
    return len(request.prompt_token_ids) + later


def group_of(request: GenerationRequest) -> str:
    """Return the name of the lengths a request is among: those up to the same power of two."""
    most_new = request.sampling.max_tokens
    if most_new <= 1:
        return "requests of one token"  # or of none: they need no KV cache
    return f"requests of up to {1 << (most_new - 1).bit_length()} tokens"


def _lengths(
    name: str, requests: Sequence[GenerationRequest], max_positions: int
) -> RequestLengths:
    prompts = [request.prompt_token_ids for request in requests]
    num_tokens = sum(map(len, prompts))
    order = prefix_order(prompts)
    shared = sum(order.shared)
    sequences = sum(request.sampling.num_completions for request in requests)
    most_new = max(max_new_tokens(request, max_positions) for request in requests)
    return RequestLengths(
        name=name,
        num_requests=sequences,
        prompt_len=num_tokens / len(prompts),
        max_prompt_len=max(map(len, prompts)),
        new_tokens=most_new,
        # Completions of one prompt share all of it.
        unique_ratio=max(1, num_tokens - shared) / num_tokens * len(prompts) / sequences,
        max_shared_len=max(order.shared),
        max_cached_len=max(cached_tokens(request, max_positions) for request in requests),
        least_filled=_least_filled([requests[index] for index in order.indices], order.shared),
        scored_part=sum(request.prompt_logprobs for request in requests) / len(requests),
    )


def _least_filled(requests: Sequence[GenerationRequest], shared: Sequence[int]) -> float:
    """Return `RequestLengths.least_filled`, whichever of the requests come into a block.

    Args:
        requests: those with a common prefix are neighbours.
        shared: tokens each has in common with the one before it.
    """
    least, most = [], []
    for request, before, after in zip(requests, shared, [*shared[1:], 0], strict=True):
        prompt_len = len(request.prompt_token_ids)
        alone = request.sampling.num_completions == 1
        cached_new = max(0, request.sampling.max_tokens - 1)
        least.append((prompt_len - max(before, after) if alone else 0) + cached_new)
        most.append(prompt_len + cached_new)
    return max(LEAST_FILLED, min(least) / max(most))
