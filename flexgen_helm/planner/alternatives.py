"""Policies ever less like one that does not fit, and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flexgen_helm.specs.placement import Placement, Tier
from flexgen_helm.specs.policy import Policy


def alternatives(policy: Policy, *, unified: bool) -> Iterator[Policy]:
    """Yield policies ever less like this one: smaller micro-batches, then more of it elsewhere.

    First as much as need be goes to the host, unless that is one memory with the device, then to
    disk.
    """
    for tier in (Tier.DISK,) if unified else (Tier.HOST, Tier.DISK):
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


def differences(policy: Policy, other: Policy) -> str:
    """Say what is different in another policy, as settings to give."""
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
