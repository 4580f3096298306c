"""`bench tree`: whether arranging and computing stay linear, and memory flat, for many requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from flexgen_helm.batching.blocks import BlockBudget, Demand, PendingRequests
from flexgen_helm.batching.packing import pack_tree
from flexgen_helm.batching.prefix_tree import build_tree
from flexgen_helm.bench.report import Cell, Report
from flexgen_helm.runtime.engine import Engine
from flexgen_helm.runtime.statistics import resident_bytes
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest, SamplingParams

VOCABULARY = 50_000
REQUESTS_PER_BEGINNING = 100
"""As many as HELM makes instances of a train trial; the few-shot examples are the same."""

NEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class ArrangementRow:
    """Arranging prompts as a prefix tree, cutting it into blocks and laying these out."""

    arranged_prompts: int
    prompt_tokens: int
    unique_tokens: int
    blocks: int
    seconds: float
    memory_bytes: int
    """Resident memory of the process afterwards, prompts included."""


@dataclass(frozen=True, kw_only=True)
class ComputationRow:
    """Computing requests with a model."""

    requests: int
    prompt_tokens: int
    unique_tokens: int
    generated_tokens: int
    seconds: float
    memory_bytes: int
    """Resident memory of the process afterwards, requests and results included."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Least-squares line of seconds over unique tokens."""

    seconds_per_token: float
    seconds_at_zero: float
    r_squared: float


def run_tree_benchmark(
    *,
    checkpoint: Path,
    arranged: Sequence[int],
    computed: Sequence[int],
    conditions: Mapping[str, Cell],
    announce: Callable[[str], None],
) -> Report:
    """Arrange and compute ever more requests.

    Args:
        checkpoint: model to compute with.
        arranged: numbers of prompts to arrange.
        computed: numbers of requests to compute, at least two.
        conditions: to report with the figures.
        announce: told what is being done.
    """
    arrangements = []
    for count in arranged:
        announce(f"arranging {count} prompts of 500 tokens")
        arrangements.append(arrange(random_prompts(count, shared=300, own=200)))
    policy = Policy(cache_bytes=64 << 20)
    computations = []
    with Engine.from_pretrained(checkpoint, policy=policy) as engine:
        for count in computed:
            announce(f"computing {count} requests of 120 prompt tokens")
            computations.append(compute(engine, random_prompts(count, shared=90, own=30)))
    line = fit(computations)
    first, last = computations[0], computations[-1]
    return Report(
        ratios={
            "unique_over_requested_tokens": round(last.unique_tokens / last.prompt_tokens, 4),
            "cost_per_unique_token_last_over_first": round(
                (last.seconds / last.unique_tokens) / (first.seconds / first.unique_tokens), 3
            ),
            "memory_last_over_first": round(last.memory_bytes / first.memory_bytes, 3),
        },
        conditions={
            **conditions,
            "prompts": f"{REQUESTS_PER_BEGINNING} with each beginning, the rest random",
            "cache_bytes": policy.cache_bytes,
            "fit": f"{line.seconds_per_token:.3g} s per unique token + {line.seconds_at_zero:.3g} s"
            f", R^2 {line.r_squared:.5f}",
        },
        rows=[*map(asdict, arrangements), *map(asdict, computations)],
    )


def random_prompts(count: int, *, shared: int, own: int) -> NDArray[np.int32]:
    """Return prompts [count, shared + own], of which every hundred have a beginning in common."""
    random = np.random.default_rng(0)
    num_beginnings = -(-count // REQUESTS_PER_BEGINNING)
    beginnings = random.integers(4, VOCABULARY, (num_beginnings, shared), np.int32)
    ends = random.integers(4, VOCABULARY, (count, own), np.int32)
    return np.concatenate([beginnings.repeat(REQUESTS_PER_BEGINNING, 0)[:count], ends], axis=1)


def arrange(prompts: NDArray[np.int32]) -> ArrangementRow:
    """Do with prompts all that is done before anything is computed."""
    policy = Policy()
    start_s = perf_counter()
    blocks = unique_tokens = 0
    for trees in _arranged(prompts, policy):
        blocks += 1
        unique_tokens += trees
    return ArrangementRow(
        arranged_prompts=len(prompts),
        prompt_tokens=prompts.size,
        unique_tokens=unique_tokens,
        blocks=blocks,
        seconds=round(perf_counter() - start_s, 3),
        memory_bytes=resident_bytes(),
    )


def _arranged(prompts: NDArray[np.int32], policy: Policy) -> Iterator[int]:
    """Yield the tokens to compute of one block after the other."""
    demand = Demand(sequences=1, new_tokens=NEW_TOKENS - 1)
    pending = PendingRequests(dict(enumerate(prompts)), dict.fromkeys(range(len(prompts)), demand))
    budget = BlockBudget(
        sequences=policy.effective_batch,
        cached_tokens=1 << 20,
        prompt_tokens=policy.num_micro_batches * policy.micro_batch_tokens,
    )
    kept = 0
    while pending:
        block = pending.take(budget, at_least=1, min_kept=1)
        lengths = [prompts.shape[1]] * len(block.requests)
        nodes = build_tree(lengths, block.shared, kept=kept, keep=block.keep)
        tree = pack_tree(
            nodes,
            [1] * len(lengths),
            micro_batch_tokens=policy.micro_batch_tokens,
            kept=kept,
            keep=block.keep,
        )
        yield sum(micro_batch.num_rows for micro_batch in tree.micro_batches)
        kept = block.keep


def compute(engine: Engine, prompts: NDArray[np.int32]) -> ComputationRow:
    """Generate a few tokens after each prompt."""
    sampling = SamplingParams(max_tokens=NEW_TOKENS)
    requests = [GenerationRequest(prompt_token_ids=p.tolist(), sampling=sampling) for p in prompts]
    start_s = perf_counter()
    costs = [result.statistics for result in engine.generate(requests)]
    return ComputationRow(
        requests=len(requests),
        prompt_tokens=prompts.size,
        unique_tokens=round(sum(cost.computed_prompt_tokens for cost in costs)),
        generated_tokens=sum(cost.num_generated_tokens for cost in costs),
        seconds=round(perf_counter() - start_s, 3),
        memory_bytes=resident_bytes(),
    )


def fit(rows: Sequence[ComputationRow]) -> Fit:
    """Fit a line to what computing took."""
    tokens = np.array([row.unique_tokens for row in rows], dtype=float)
    seconds = np.array([row.seconds for row in rows])
    slope, intercept = np.polyfit(tokens, seconds, 1)
    residual = seconds - (slope * tokens + intercept)
    total = ((seconds - seconds.mean()) ** 2).sum()
    return Fit(
        seconds_per_token=float(slope),
        seconds_at_zero=float(intercept),
        r_squared=float(1 - (residual**2).sum() / total),
    )
