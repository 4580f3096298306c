"""Cutting pending requests into blocks that share prefixes and fit into the room there is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flexgen_helm.batching.prefix_tree import Order, prefix_order


@dataclass(frozen=True, kw_only=True)
class BlockBudget:
    """What a block may take, at most."""

    sequences: int
    """Sequences that decode."""

    cached_tokens: int
    """Tokens whose keys and values stay until their sequences have finished."""

    prompt_tokens: int
    """Prompt tokens to compute."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a request takes, beside its prompt."""

    sequences: int
    """Sequences that go on after their first token; 0 for a request that needs no KV cache."""

    new_tokens: int
    """Tokens that each of them may add to the KV cache."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive positions, to be prefilled in one pass over the weights."""

    requests: tuple[int, ...]
    """Index of the request at each position."""

    shared: tuple[int, ...]
    """Tokens each has in common with the one before it; the first, with the block before."""

    keep: int
    """Tokens the last one has in common with the next block's first, and that are kept for it."""


class PendingRequests:
    """Requests in the order of their prefix tree, handed out block by block."""

    def __init__(
        self,
        prompts: Mapping[int, Sequence[int]],
        demands: Mapping[int, Demand],
        *,
        share_prefixes: bool = True,
    ) -> None:
        """Arrange requests.

        Args:
            prompts: token ids by the request's index.
            demands: what each takes, likewise.
            share_prefixes: whether to look for common prefixes at all.
        """
        indices = list(prompts)
        order = (prefix_order if share_prefixes else _as_given)(list(prompts.values()))
        self._indices = [indices[index] for index in order.indices]
        self._shared = order.shared
        self._demands = [demands[index] for index in self._indices]
        self._prompt_lens = [len(prompts[index]) for index in self._indices]
        self._next = self._kept = 0
        self._before = 0, 0

    def __bool__(self) -> bool:
        return self._next < len(self._indices)

    def take(
        self, budget: BlockBudget, *, at_least: int, min_kept: int, max_kept: int = sys.maxsize
    ) -> Block:
        """Take the next block out: what fits, and `at_least` so many requests if there are.

        What it has in common with the one after it is kept if that is at least `min_kept` tokens,
        and no more than `max_kept` of them; the rest each computes.
        """
        self._before = self._next, self._kept
        start, end = self._next, self._end(budget)
        self._next = end = max(end, min(start + at_least, len(self._indices)))
        if start < end:
            keep = min(self._shared[end], max_kept) if self else 0
            self._kept = keep if keep >= min_kept else 0
        return Block(
            requests=tuple(self._indices[start:end]),
            shared=tuple(self._shared[start:end]),
            keep=self._kept,
        )

    def put_back(self) -> None:
        """Undo the last `take`."""
        self._next, self._kept = self._before

    def gains_by_waiting(self, budget: BlockBudget) -> bool:
        """Whether, with as many prompt tokens, more would fit if there were room to cache more."""
        unlimited = replace(budget, sequences=sys.maxsize, cached_tokens=sys.maxsize)
        return self._end(unlimited) > self._end(budget)

    def _end(self, budget: BlockBudget) -> int:
        lengths, shared, demands = self._prompt_lens, self._shared, self._demands
        return cut(lengths, shared, demands, self._next, budget, kept=self._kept)


def cut(
    prompt_lens: Sequence[int],
    shared: Sequence[int],
    demands: Sequence[Demand],
    start: int,
    budget: BlockBudget,
    *,
    kept: int = 0,
) -> int:
    """Return the end of the block that begins at `start`: as many positions as fit.

    A position adds the tokens it does not share with the one before it, which in this order are
    those that no earlier one of the block has computed. Of the first the block before has computed
    `kept` tokens; for sequences of this one they are cached once more.
    """
    sequences = cached_tokens = prompt_tokens = 0
    for position in range(start, len(prompt_lens)):
        demand, first = demands[position], position == start
        own_tokens = prompt_lens[position] - (0 if first else shared[position])
        sequences += demand.sequences
        prompt_tokens += own_tokens - (kept if first else 0)
        if demand.sequences:
            cached_tokens += own_tokens + demand.sequences * demand.new_tokens
        fits = (
            sequences <= budget.sequences
            and cached_tokens <= budget.cached_tokens
            and prompt_tokens <= budget.prompt_tokens
        )
        if not fits:
            return position
    return len(prompt_lens)


def _as_given(prompts: Sequence[Sequence[int]]) -> Order:
    return Order(list(range(len(prompts))), [0] * len(prompts))
