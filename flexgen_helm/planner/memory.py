"""Whether a policy fits into memory, what is left for the KV cache, and what fits instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

from flexgen_helm.errors import BudgetError
from flexgen_helm.planner.alternatives import alternatives, differences
from flexgen_helm.planner.block_load import Shape
from flexgen_helm.planner.linear import Linear, placed_on
from flexgen_helm.planner.memory_terms import (
    MICRO_BATCH,
    Bytes,
    Filling,
    attended_per_token,
    attending,
    cache_per_token,
    fixed_terms,
    matrix_bytes,
    stored_per_token,
    token_bytes,
    total,
    working_terms,
)
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.chunks import REUSED_BYTES
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.placement import ON_DEVICE, Placement, Tier
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.workload import Workload
from flexgen_helm.units import format_bytes

LEAST_TOKENS = 1024
"""Tokens a KV cache should have room for, where that is to be had."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What is in memory at one time."""

    fixed: Mapping[str, Bytes]
    """Terms that do not depend on what is cached."""

    per_token: Bytes
    """Of each token in the KV cache."""

    def bytes_on(self, tiers: tuple[Tier, ...], *, cached_tokens: float) -> float:
        """Bytes it takes on some tiers together, with so many tokens in the KV cache."""
        per_token = sum(self.per_token.get(tier, 0) for tier in tiers)
        return total(self.fixed, tiers) + cached_tokens * per_token


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a policy takes."""

    times: tuple[Taken, ...]
    """Prefill and decode where one comes after the other, else both together."""

    cache_tokens: int | None
    """Tokens there is room for; `None` without a limit."""

    @property
    def fixed(self) -> Mapping[str, Bytes]:
        """What does not depend on what is cached, in prefill."""
        return self.times[0].fixed

    @property
    def per_token(self) -> Bytes:
        """Of each token in the KV cache, in decode."""
        return self.times[-1].per_token

    @property
    def weights_on_disk(self) -> int:
        """Bytes of weights that are read from disk."""
        return int(self.fixed["weights"].get(Tier.DISK, 0))

    def bytes_on(self, tiers: tuple[Tier, ...], *, cached_tokens: float) -> float:
        """Bytes it takes on some tiers together, with so many tokens in the KV cache, at most."""
        return max(taken.bytes_on(tiers, cached_tokens=cached_tokens) for taken in self.times)


def plan_memory(
    setup: Setup, policy: Policy, budget: MemoryBudget, workload: Workload | None = None
) -> MemoryPlan:
    """Work out what a policy takes, and what a budget leaves for the KV cache.

    Args:
        setup: the model.
        policy: where everything is.
        budget: what may be used.
        workload: what is run; if left out, as much as the policy allows.

    Raises:
        BudgetError: not even one token could be cached.
    """
    if workload is None:
        plan = _plan(setup, policy, budget)
    else:
        filled = _as_filled(policy, workload.most_rows)
        filling = Filling(
            least_filled=workload.least_filled,
            longest=workload.longest,
            shared=workload.shared_tokens,
            longest_shared=workload.longest_shared,
            head_rows=workload.head_rows,
            cached=workload.cached_tokens,
        )
        plan = _plan(setup, filled, budget, filling)
        if _is_one_block(policy, workload, plan.cache_tokens):
            dequantized = workload.cached_tokens * setup.spec.hidden_size * setup.dtype_bytes
            reuses = setup.unified and dequantized < REUSED_BYTES
            plan = _plan(setup, filled, budget, replace(filling, apart=True), reuses=reuses)
    if plan.cache_tokens is not None and plan.cache_tokens < 1:
        nearest = nearest_policy(setup, policy, budget) or nearest_policy(setup, Policy(), budget)
        advice = (
            "no policy of this model fits: allow more"
            if nearest is None
            else f"this fits: {differences(policy, nearest)}"
        )
        raise BudgetError(f"{_shortfall(setup, plan, budget)}; {advice}")
    return plan


def _as_filled(policy: Policy, most_rows: float) -> Policy:
    """Return a policy with no more and no larger micro-batches than are needed for some rows."""
    if most_rows >= policy.micro_batch_tokens * policy.num_micro_batches:
        return policy
    tokens = max(1, min(policy.micro_batch_tokens, ceil(most_rows)))
    return replace(
        policy, micro_batch_tokens=tokens, num_micro_batches=max(1, ceil(most_rows / tokens))
    )


def _is_one_block(policy: Policy, workload: Workload, cache_tokens: int | None) -> bool:
    """Whether all prompts are computed in one pass, before anything is in decode."""
    sequences = sum(lengths.num_requests for lengths in workload)
    return (
        workload.most_rows <= policy.micro_batch_tokens * policy.num_micro_batches
        and sequences <= policy.effective_batch
        and (cache_tokens is None or workload.cached_tokens <= cache_tokens)
    )


def _plan(
    setup: Setup,
    policy: Policy,
    budget: MemoryBudget,
    filling: Filling | None = None,
    *,
    reuses: bool = False,
) -> MemoryPlan:
    """Plan for requests that fill a policy so.

    Args:
        setup: the model.
        policy: where everything is.
        budget: what may be used.
        filling: how full it gets; as full as it can be if `None`.
        reuses: whether attention in decode takes the memory that a micro-batch had in prefill.
    """
    filling = filling or Filling()
    fixed = fixed_terms(setup, policy, filling)
    per_token = cache_per_token(setup, policy, least_filled=filling.least_filled)
    times = [Taken(fixed=fixed, per_token=per_token)]
    if reuses:
        stored = stored_per_token(setup, policy, filling.least_filled)
        decode = {name: term for name, term in fixed.items() if name != MICRO_BATCH}
        times = [
            Taken(fixed=fixed, per_token=stored),
            Taken(fixed=decode, per_token=per_token),
        ]
    rooms = []
    for tiers, allowed in _memories(setup, budget):
        for taken in times:
            each = sum(taken.per_token.get(tier, 0) for tier in tiers)
            left = allowed - total(taken.fixed, tiers)
            if left < 0:
                rooms.append(0)
            elif each:
                rooms.append(int(left / each))
    return MemoryPlan(times=tuple(times), cache_tokens=min(rooms, default=None))


def nearest_policy(
    setup: Setup, policy: Policy, budget: MemoryBudget, workload: Workload | None = None
) -> Policy | None:
    """Return the policy that fits a budget and differs least: `None` if there is none.

    Smaller micro-batches come first, then weights, cache and activations elsewhere.

    Args:
        setup: the model.
        policy: what it is to be near to.
        budget: what may be used.
        workload: of which even the longest request should have room in the KV cache, if possible.
    """
    wanted, filling = 1, Filling()
    if workload is not None:
        wanted = max(1, workload.most_cached)
        filling = Filling(longest_shared=workload.longest_shared)
    for least_tokens in (max(LEAST_TOKENS, wanted), wanted, 1):
        for candidate in alternatives(policy, unified=setup.unified):
            tokens = _plan(setup, candidate, budget, filling).cache_tokens
            if tokens is None or tokens >= least_tokens:
                return candidate
    return None


def _shortfall(setup: Setup, plan: MemoryPlan, budget: MemoryBudget) -> str:
    """Say where it does not fit, and what takes the memory."""
    sentences = []
    for tiers, allowed in _memories(setup, budget):
        needed = plan.bytes_on(tiers, cached_tokens=1)
        if needed > allowed:
            sizes = {name: total({name: term}, tiers) for name, term in plan.fixed.items()}
            sizes["a token in the KV cache"] = needed - sum(sizes.values())
            largest_first = sorted(sizes.items(), key=lambda item: -item[1])
            listed = ", ".join(f"{name} {format_bytes(x)}" for name, x in largest_first if x >= 1)
            sentences.append(
                f"{' and '.join(tier.value for tier in tiers)} memory of {format_bytes(allowed)} is"
                f" {format_bytes(needed - allowed)} short: {listed}"
            )
    return "; ".join(sentences)


def allowed_beside(setup: Setup, budget: MemoryBudget, tier: Tier) -> int | None:
    """Return what may be used of a tier and of those that share its memory; `None` if no limit."""
    return next((limit for tiers, limit in _memories(setup, budget) if tier in tiers), None)


def limits_of(setup: Setup, hardware: Hardware, budget: MemoryBudget) -> dict[str, float]:
    """Return the bytes that may be used of each memory: what there is, or less if a budget says."""
    there = {
        Tier.DEVICE: hardware.device_bytes,
        Tier.HOST: hardware.host_bytes,
        Tier.DISK: hardware.disk_bytes,
    }
    allowed = {tier: budget.on(tier) for tier in Tier}
    if setup.unified:
        both = [size for tier in (Tier.DEVICE, Tier.HOST) if (size := allowed[tier]) is not None]
        allowed[Tier.DEVICE] = sum(both) if both else None
    tiers = [Tier.DEVICE, Tier.DISK] if setup.unified else list(Tier)
    return {
        tier.value: there[tier] if (size := allowed[tier]) is None else min(size, there[tier])
        for tier in tiers
    }


def budget_of(setup: Setup, hardware: Hardware, budget: MemoryBudget) -> MemoryBudget:
    """Return a budget that also knows what memory there is."""
    limits = limits_of(setup, hardware, budget)
    return MemoryBudget(**{name: max(1, int(size)) for name, size in limits.items()})


def _memories(setup: Setup, budget: MemoryBudget) -> Iterator[tuple[tuple[Tier, ...], int]]:
    """Tiers that share a limit, and the limit."""
    groups: list[tuple[Tier, ...]] = [(Tier.DEVICE,), (Tier.HOST,), (Tier.DISK,)]
    if setup.unified:
        groups = [(Tier.DEVICE, Tier.HOST), (Tier.DISK,)]
    for tiers in groups:
        limits = [limit for tier in tiers if (limit := budget.on(tier)) is not None]
        if limits:
            yield tiers, sum(limits)


def needed_bytes(setup: Setup, shape: Shape, workload: Workload) -> dict[str, Linear]:
    """Return the memory that a shape of blocks needs at most, by what shares a limit.

    Where each matrix goes is not known yet: what a placement may miss its fractions by, which is
    less than the largest of them, is added.
    """
    disk = Placement(disk=1)
    policy = Policy(
        micro_batch_size=shape.micro_batch_size,
        num_micro_batches=shape.num_micro_batches,
        micro_batch_tokens=shape.micro_batch_tokens,
        cache_bytes=cache_bytes_of(setup, shape),
        weights=disk if shape.weights_on_disk else ON_DEVICE,
        cache=_somewhere(setup, shape),
        attention=shape.attention,
    )
    least_filled = workload.least_filled
    filling = Filling(least_filled=least_filled, longest_shared=workload.longest_shared)
    fixed = working_terms(setup, policy, filling)
    layer = matrix_bytes(setup)
    weights, largest = sum(layer.values()) * setup.spec.num_layers, max(layer.values())
    activations = fixed.pop("activations")[Tier.DEVICE]
    placed = {"weights": weights, "activations": activations}
    on_tier = {
        tier: sum(
            (placed_on(name, tier) * size for name, size in placed.items()),
            Linear(total(fixed, (tier,))),
        )
        + placed_on("cache", tier) * (token_bytes(setup, least_filled) * shape.cached_tokens)
        for tier in Tier
    }
    tier = attending(setup, shape.attention)
    attended = attended_per_token(setup, shape.attention, least_filled) * shape.cached_tokens
    on_tier[tier] = on_tier[tier] + attended
    on_tier[Tier.DEVICE] = on_tier[Tier.DEVICE] + largest
    two_layers = 2 * weights / setup.spec.num_layers
    if shape.weights_on_disk:
        staging = placed_on("weights", Tier.DISK) * two_layers
        on_tier[Tier.HOST] = on_tier[Tier.HOST] + staging + 2 * largest
    if not setup.unified:
        staging = placed_on("weights", Tier.HOST, Tier.DISK) * two_layers
        on_tier[Tier.DEVICE] = on_tier[Tier.DEVICE] + staging + 2 * largest
    if setup.unified:
        host = on_tier.pop(Tier.HOST)
        on_tier[Tier.DEVICE] = on_tier[Tier.DEVICE] + host
    return {tier.value: needed for tier, needed in on_tier.items()}


def _somewhere(setup: Setup, shape: Shape) -> Placement:
    """Return a placement of the cache that takes as much beside it as any that is possible."""
    if shape.cache_on_disk:
        return Placement(disk=1)
    return ON_DEVICE if setup.unified else Placement(host=1)


def cache_bytes_of(setup: Setup, shape: Shape) -> int:
    """Return the bytes of the KV cache of a shape."""
    return shape.cached_tokens * setup.cached_token_bytes
