"""Memory a policy takes on each tier, as a sum of named terms, in bytes.

Shape letters: n rows of a micro-batch, e model width, f width of the MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, inf

from flexgen_helm.errors import BudgetError
from flexgen_helm.planner.costs import Shape
from flexgen_helm.planner.linear import Linear, placed_on
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.chunks import (
    CHUNK_SCORES,
    DEQUANTIZED_AT_ONCE,
    HEAD_COLUMNS,
    HEAD_ROWS,
    LEAST_FILLED,
    READS_IN_MEMORY,
    spill_memory,
)
from flexgen_helm.specs.compression import quantized_bytes
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.placement import ON_DEVICE, Placement, Tier, place_evenly
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.workload import Workload
from flexgen_helm.units import format_bytes

Bytes = Mapping[Tier, float]
"""By tier; nothing on those that are not named."""

LEAST_TOKENS = 1024
"""Tokens a KV cache should have room for, where that is to be had."""

LIBRARY_BYTES = 56 << 20
"""Code of torch and oneDNN that comes into memory when it first runs, and holes in the heap: 20 to
40 MB as measured, and once more than that."""

DEQUANTIZING_BYTES = 6
"""Per number: its code as an integer and in float32, where its value takes its place, and a part of
its group's scale and zero."""


@dataclass(frozen=True, kw_only=True)
class Filling:
    """How full requests make what a policy allows."""

    least_filled: float = LEAST_FILLED
    """Part of the KV cache that holds tokens, at least; the rest is padding."""

    longest: float = inf
    """Tokens of a sequence, at most."""

    head_rows: float = inf
    """Rows that go through the LM head, at most."""

    apart: bool = False
    """Whether nothing is in decode while prompts are computed."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a policy takes."""

    fixed: Mapping[str, Bytes]
    """Terms that do not depend on what is cached."""

    per_token: Bytes
    """Of each token in the KV cache."""

    cache_tokens: int | None
    """Tokens there is room for; `None` without a limit."""

    @property
    def weights_on_disk(self) -> int:
        """Bytes of weights that are read from disk."""
        return int(self.fixed["weights"].get(Tier.DISK, 0))

    def bytes_on(self, tiers: tuple[Tier, ...], *, cached_tokens: int) -> float:
        """Bytes it takes on some tiers together, with so many tokens in the KV cache."""
        per_token = sum(self.per_token.get(tier, 0) for tier in tiers)
        return _total(self.fixed, tiers) + cached_tokens * per_token


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
            head_rows=workload.head_rows,
        )
        plan = _plan(setup, filled, budget, filling)
        if _is_one_block(policy, workload, plan.cache_tokens):
            plan = _plan(setup, filled, budget, replace(filling, apart=True))
    if plan.cache_tokens is not None and plan.cache_tokens < 1:
        nearest = nearest_policy(setup, policy, budget)
        advice = (
            "no policy of this model fits: allow more"
            if nearest is None
            else f"this fits: {_differences(policy, nearest)}"
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


def nearest_policy(setup: Setup, policy: Policy, budget: MemoryBudget) -> Policy | None:
    """Return the policy that fits a budget and differs least: `None` if there is none.

    Smaller micro-batches come first, then weights, cache and activations elsewhere.
    """
    for least_tokens in (LEAST_TOKENS, 1):
        for candidate in _candidates(setup, policy):
            tokens = _plan(setup, candidate, budget).cache_tokens
            if tokens is None or tokens >= least_tokens:
                return candidate
    return None


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


def fixed_terms(setup: Setup, policy: Policy, filling: Filling | None = None) -> dict[str, Bytes]:
    """Return what a policy takes, whatever is cached, at most or of requests that fill it so."""
    return _weight_terms(setup, policy) | _working_terms(setup, policy, filling or Filling())


def _weight_terms(setup: Setup, policy: Policy) -> dict[str, Bytes]:
    """Matrices where they are, and what those elsewhere than on the device are brought into."""
    layer = _matrix_bytes(setup)
    layers = [layer] * setup.spec.num_layers
    tiers = _placed(tuple(layer.items()), setup.spec.num_layers, policy.weights)
    placed = {
        tier: sum(
            sizes[name]
            for sizes, on in zip(layers, tiers, strict=True)
            for name in sizes
            if on[name] is tier
        )
        for tier in Tier
    }

    def most(*where: Tier) -> int:
        """Bytes of a layer on some tiers, at most."""
        return max(
            sum(size for name, size in sizes.items() if on[name] in where)
            for sizes, on in zip(layers, tiers, strict=True)
        )

    brought = 0 if setup.unified else most(Tier.HOST, Tier.DISK)
    staging = {Tier.HOST: 2 * most(Tier.DISK), Tier.DEVICE: 2 * brought}
    return {"weights": placed, "staging buffers": staging}


@lru_cache(maxsize=1024)
def _placed(
    layer: tuple[tuple[str, int], ...], num_layers: int, placement: Placement
) -> list[dict[str, Tier]]:
    """Place layers that are all alike; a search asks for the same ones again and again."""
    return place_evenly([dict(layer)] * num_layers, placement)


def _working_terms(setup: Setup, policy: Policy, filling: Filling) -> dict[str, Bytes]:
    """All else."""
    spec, width = setup.spec, setup.spec.hidden_size * setup.dtype_bytes
    rows = policy.micro_batch_tokens * policy.num_micro_batches
    return {
        "embeddings, norms and biases": {
            Tier.DEVICE: spec.num_other_parameters * setup.dtype_bytes
        },
        "matrix in use": {Tier.DEVICE: _matrix_in_use(setup, policy)},
        "activations": {tier: rows * width * policy.activations.on(tier) for tier in Tier},
        "cache on its way to disk": {Tier.HOST: _cache_on_its_way(setup, policy, filling)},
        "cache on its way to the device": {Tier.DEVICE: _cache_for_device(setup, policy)},
        "micro-batch": {Tier.DEVICE: _micro_batch(setup, policy, filling.longest)},
        "sparse attention": {Tier.DEVICE: _sparse_attention(setup, policy)},
        # In float32, and their log-probabilities.
        "logits": {Tier.DEVICE: min(HEAD_ROWS, filling.head_rows) * spec.vocab_size * 8},
        "libraries": {Tier.HOST: LIBRARY_BYTES},
    }


def needed_bytes(
    setup: Setup, shape: Shape, *, least_filled: float = LEAST_FILLED
) -> dict[str, Linear]:
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
    fixed = _working_terms(setup, policy, Filling(least_filled=least_filled))
    layer = _matrix_bytes(setup)
    weights, largest = sum(layer.values()) * setup.spec.num_layers, max(layer.values())
    activations = fixed.pop("activations")[Tier.DEVICE]
    placed = {"weights": weights, "activations": activations}
    on_tier = {
        tier: sum(
            (placed_on(name, tier) * size for name, size in placed.items()),
            Linear(_total(fixed, (tier,))),
        )
        + placed_on("cache", tier) * (_stored_per_token(setup, least_filled) * shape.cached_tokens)
        for tier in Tier
    }
    attending = _attending(setup, shape.attention)
    attended = _per_token_attended(setup, least_filled) * shape.cached_tokens
    on_tier[attending] = on_tier[attending] + attended
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
    return shape.cached_tokens * setup.spec.cache_bytes(
        setup.compression, num_tokens=1, dtype_bytes=setup.dtype_bytes
    )


def cache_per_token(setup: Setup, policy: Policy, *, least_filled: float = LEAST_FILLED) -> Bytes:
    """Return what a token in the KV cache takes, with its share of padding."""
    token = _stored_per_token(setup, least_filled)
    taken = {tier: policy.cache.on(tier) * token for tier in Tier}
    taken[_attending(setup, policy.attention)] += _per_token_attended(setup, least_filled)
    return taken


def _stored_per_token(setup: Setup, least_filled: float) -> float:
    """Of a token in the KV cache, in a pool of which the rest is padding, at most."""
    stored = setup.spec.cache_bytes(setup.compression, num_tokens=1, dtype_bytes=setup.dtype_bytes)
    return stored / least_filled


def _per_token_attended(setup: Setup, least_filled: float) -> float:
    """What a cached token takes where it is attended to, wherever it is stored."""
    decompressed = 2 * setup.spec.hidden_size * setup.dtype_bytes / least_filled
    compressed = setup.compression.cache_bits is not None
    return (decompressed if compressed else 0) + _sparse_per_token(setup)


def _attending(setup: Setup, attention: str) -> Tier:
    """Whose memory attention takes."""
    return Tier.HOST if attention == "host" and not setup.unified else Tier.DEVICE


def _plan(
    setup: Setup, policy: Policy, budget: MemoryBudget, filling: Filling | None = None
) -> MemoryPlan:
    filling = filling or Filling()
    fixed = fixed_terms(setup, policy, filling)
    per_token = cache_per_token(setup, policy, least_filled=filling.least_filled)
    rooms = []
    for tiers, allowed in _memories(setup, budget):
        each = sum(per_token.get(tier, 0) for tier in tiers)
        left = allowed - _total(fixed, tiers)
        if left < 0:
            rooms.append(0)
        elif each:
            rooms.append(int(left / each))
    return MemoryPlan(fixed=fixed, per_token=per_token, cache_tokens=min(rooms, default=None))


def _memories(setup: Setup, budget: MemoryBudget) -> Iterator[tuple[tuple[Tier, ...], int]]:
    """Tiers that share a limit, and the limit."""
    groups: list[tuple[Tier, ...]] = [(Tier.DEVICE,), (Tier.HOST,), (Tier.DISK,)]
    if setup.unified:
        groups = [(Tier.DEVICE, Tier.HOST), (Tier.DISK,)]
    for tiers in groups:
        limits = [limit for tier in tiers if (limit := budget.on(tier)) is not None]
        if limits:
            yield tiers, sum(limits)


def _total(terms: Mapping[str, Bytes], tiers: tuple[Tier, ...]) -> float:
    return sum(term.get(tier, 0) for term in terms.values() for tier in tiers)


def _matrix_bytes(setup: Setup) -> dict[str, int]:
    """Bytes of a layer's matrices as stored."""
    bits, group_size = setup.compression.weight_bits, setup.compression.group_size
    return {
        name: rows * row_len * setup.dtype_bytes
        if bits is None
        else quantized_bytes(num_rows=rows, row_len=row_len, bits=bits, group_size=group_size)
        for name, (rows, row_len) in setup.spec.matrix_shapes.items()
    }


def _matrix_in_use(setup: Setup, policy: Policy) -> int:
    """What it takes to compute with a matrix, beside what is stored or read of it.

    A copy in the order of the processor's kernels: of a part of the LM head, which is read as it
    is, or of a matrix that was not brought into that order when it was loaded. Of compressed ones
    there is a layer of dequantized ones.
    """
    spec = setup.spec
    head = HEAD_COLUMNS * spec.embedding_size * setup.dtype_bytes
    if setup.compression.weight_bits is not None:
        numbers = [rows * row_len for rows, row_len in spec.linear_shapes.values()]
        at_once = min(DEQUANTIZED_AT_ONCE, max(numbers))
        return sum(numbers) * setup.dtype_bytes + max(head, at_once * DEQUANTIZING_BYTES)
    return max(head, *_matrix_bytes(setup).values()) if policy.weights.disk else head


def _micro_batch(setup: Setup, policy: Policy, longest: float) -> float:
    """What a micro-batch takes in a layer, in prefill.

    Attention: hidden states, their norm, queries (as projected and scaled), keys and values (as
    projected, with those carried on from the micro-batch before, by head, and for the next),
    attended values, and queries, keys, values and attended values once more, in chains side by
    side: 20 rows. The MLP: hidden states, their norm, its output, their sum, and [n, f]. Scores
    are computed in chunks, if there are so many.
    """
    spec = setup.spec
    widths = max(20 * spec.hidden_size, 4 * spec.hidden_size + spec.ffn_size)
    if _attending(setup, policy.attention) is Tier.HOST:
        # One micro-batch is attended to while another is computed: its hidden states, and what it
        # attended to of shared positions.
        widths += 2 * spec.hidden_size
    seen = min(longest, spec.max_positions)
    scores = min(CHUNK_SCORES, policy.micro_batch_tokens * spec.num_heads * seen)
    return (policy.micro_batch_tokens * widths + 3 * scores) * setup.dtype_bytes


def _cache_on_its_way(setup: Setup, policy: Policy, filling: Filling) -> float:
    """Keys and values between memory and disk.

    Prefill fills those of a layer, of all rows of a pass, while those of the layer before are
    written. Decode has those in use, those ahead, and what is written meanwhile. A pool that is
    packed anew takes no more, as nothing is ahead then: keys, or values, as they were read, in
    order and where they go, and those on their way to disk.
    """
    if not policy.cache.disk:
        return 0
    spec = setup.spec
    stored = spec.cache_bytes(setup.compression, num_tokens=1, dtype_bytes=setup.dtype_bytes)
    position = stored / (2 * spec.num_layers)
    rows = policy.micro_batch_tokens * policy.num_micro_batches
    planned = policy.spilled_at_once(spec.num_layers)
    written = 4 * rows * position / filling.least_filled
    read = spill_memory(max(planned, round(spec.max_positions * position)))
    return max(written, read) if filling.apart else written + read


def _cache_for_device(setup: Setup, policy: Policy) -> float:
    """Keys and values that were brought to a device: those of a turn in use, and those ahead."""
    if setup.unified or policy.attention == "host" or policy.cache.device == 1:
        return 0
    spec = setup.spec
    token = spec.cache_bytes(setup.compression, num_tokens=1, dtype_bytes=setup.dtype_bytes)
    longest = spec.max_positions * token / (2 * spec.num_layers)
    return READS_IN_MEMORY * max(policy.spilled_at_once(spec.num_layers), longest)


def _sparse_attention(setup: Setup, policy: Policy) -> int:
    """Largest scores of the rows of a micro-batch, twice and as they are joined; shared scores."""
    percent, spec = setup.compression.attention_percent, setup.spec
    if percent is None:
        return 0
    most = -(-spec.max_positions * percent // 100)
    return 12 * (policy.micro_batch_size * spec.num_heads * most + CHUNK_SCORES)


def _sparse_per_token(setup: Setup) -> float:
    """Scores of a cached token, twice, and of those attended to also scores, places and values."""
    percent, spec = setup.compression.attention_percent, setup.spec
    if percent is None:
        return 0
    attended = 12 * spec.num_heads + spec.hidden_size * setup.dtype_bytes
    return (setup.dtype_bytes + 4) * spec.num_heads + percent / 100 * attended


def _candidates(setup: Setup, policy: Policy) -> Iterator[Policy]:
    """Yield policies ever less like this one.

    First as much as need be goes to the host, where that has memory of its own, then to disk.
    """
    for tier in (Tier.DISK,) if setup.unified else (Tier.HOST, Tier.DISK):
        moved_all = Placement(**{tier.value: 1.0})
        for cache, activations in (
            (policy.cache, policy.activations),
            (moved_all, policy.activations),
            (moved_all, moved_all),
        ):
            for tenths in range(11):
                tokens = policy.micro_batch_tokens
                while tokens >= min(64, policy.micro_batch_tokens):
                    yield replace(
                        policy,
                        weights=_moved(policy.weights, tier, tenths / 10),
                        cache=cache,
                        activations=activations,
                        micro_batch_tokens=tokens,
                    )
                    tokens //= 2


def _moved(placement: Placement, tier: Tier, part: float) -> Placement:
    """Return a placement of which a part of what is on faster tiers has moved to another."""
    if not part:
        return placement
    kept = {
        Tier.DEVICE: placement.device * (1 - part),
        Tier.HOST: placement.host * (1 - part if tier is Tier.DISK else 1),
        Tier.DISK: placement.disk,
    }
    fractions = {name: round(fraction, 6) for name, fraction in kept.items()}
    fractions[tier] = round(1 - sum(x for name, x in fractions.items() if name is not tier), 6)
    return Placement(**{name.value: fraction for name, fraction in fractions.items()})


def _shortfall(setup: Setup, plan: MemoryPlan, budget: MemoryBudget) -> str:
    """Say where it does not fit, and what takes the memory."""
    sentences = []
    for tiers, allowed in _memories(setup, budget):
        needed = plan.bytes_on(tiers, cached_tokens=1)
        if needed > allowed:
            terms = sorted(
                ((_total({name: term}, tiers), name) for name, term in plan.fixed.items()),
                reverse=True,
            )
            listed = ", ".join(f"{name} {format_bytes(size)}" for size, name in terms if size)
            sentences.append(
                f"{' and '.join(tier.value for tier in tiers)} memory of {format_bytes(allowed)} is"
                f" {format_bytes(needed - allowed)} short: {listed}"
            )
    return "; ".join(sentences)


def _differences(policy: Policy, other: Policy) -> str:
    parts = []
    for name in ("micro_batch_tokens", "weights", "cache", "activations"):
        value = getattr(other, name)
        if value != getattr(policy, name):
            shown = value
            if isinstance(value, Placement):
                fractions = {tier.value: round(value.on(tier), 3) for tier in Tier}
                shown = {tier: fraction for tier, fraction in fractions.items() if fraction}
            parts.append(f"{name}={shown}")
    return ", ".join(parts)
