"""A plan as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexgen_helm.specs.placement import Tier
from flexgen_helm.tables.columns import Column, frame_of
from flexgen_helm.tables.render import text_table
from flexgen_helm.units import format_bytes

if TYPE_CHECKING:
    from flexgen_helm.planner.plan import Plan
    from flexgen_helm.specs.policy import Policy

SCENARIOS = (
    Column("scenario", "string", "", "scenario"),
    Column("requests", "float64", "", "num_requests"),
    Column("prompt_tokens", "float64", "", "prompt_tokens"),
    Column("unique_tokens", "float64", "", "unique_tokens"),
    Column("effective_batch", "float64", "", "effective_batch"),
    Column("prefill_minutes", "float64", "", "prefill_minutes"),
    Column("decode_minutes", "float64", "", "decode_minutes"),
    Column("prefill_bound_by", "string", "", "prefill_bound_by"),
    Column("decode_bound_by", "string", "", "decode_bound_by"),
)
"""Columns of a plan's table."""


def plan_text(plan: Plan) -> str:
    """Return a table of the scenarios, the policy, what it takes, and what limits it."""
    rows = [
        {
            **vars(scenario),
            "prompt_tokens": round(scenario.prompt_tokens),
            "unique_tokens": round(scenario.unique_tokens),
            "effective_batch": round(scenario.effective_batch),
            "prefill_minutes": scenario.prefill_s / 60,
            "decode_minutes": scenario.decode_s / 60,
            "decode_bound_by": scenario.decode_bound_by or None,
        }
        for scenario in plan.per_scenario
    ]
    memory = ", ".join(
        f"{name} {format_bytes(needed)} of {format_bytes(plan.limit_bytes[name])}"
        for name, needed in plan.needed_bytes.items()
    )
    lines = [
        f"predicted: {_duration(plan.predicted_s)}, {plan.throughput:.3g} tokens/s",
        f"compression: {plan.compression}",
        f"memory, at most: {memory}",
        *_policy_lines(plan.policy),
        *plan.limits,
    ]
    return "\n".join([text_table(frame_of(SCENARIOS, rows), SCENARIOS), "", *lines])


def _policy_lines(policy: Policy) -> list[str]:
    lines = [
        f"micro-batches: {policy.num_micro_batches} of {policy.micro_batch_size} sequences, or of"
        f" {policy.micro_batch_tokens} prompt tokens; attention on the {policy.attention}"
    ]
    for name in ("weights", "cache", "activations"):
        placement = getattr(policy, name)
        parts = [f"{100 * placement.on(tier):.3g} % {tier.value}" for tier in Tier]
        lines.append(f"{name}: {', '.join(part for part in parts if not part.startswith('0 '))}")
    return lines


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"
