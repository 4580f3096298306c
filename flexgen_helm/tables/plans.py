"""A plan as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexgen_helm.tables.columns import Column, frame_of
from flexgen_helm.tables.render import text_table

if TYPE_CHECKING:
    from flexgen_helm.planner.plan import Plan

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


def plan_text(plan: Plan, width: int | None = None) -> str:
    """Return a table of the scenarios, of a width if one is given, and the plan's summary."""
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
    table = text_table(frame_of(SCENARIOS, rows), SCENARIOS, width)
    return "\n".join([table, "", plan.summary])
