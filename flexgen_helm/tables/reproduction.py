"""Our minutes beside those of the FlexGen paper, scenario by scenario."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from flexgen_helm.tables.columns import Column, frame_of
from flexgen_helm.tables.sources import without_arguments

if TYPE_CHECKING:
    from flexgen_helm.planner.plan import Plan

REPRODUCTION = (
    Column("scenario", "string", "", "scenario"),
    Column("compression", "string", "", "run.compression"),
    Column("requests", "Int64", "", "run.requests"),
    Column("prompt_tokens", "Int64", "", "run.prompt_tokens"),
    Column("unique_tokens", "float64", "", "run.computed_prompt_tokens"),
    Column("generated_tokens", "Int64", "", "run.generated_tokens"),
    Column("effective_batch", "float64", "", "run.effective_batch"),
    Column("minutes", "float64", "minutes", "minutes"),
    Column("predicted_minutes", "float64", "minutes", "predicted_minutes"),
    Column("paper_scenario", "string", "", "paper.scenario"),
    Column("paper_requests", "Int64", "", "paper.num_requests"),
    Column("paper_minutes", "float64", "minutes", "paper.measured_minutes"),
    Column("mean_request_s", "float64", "s", "mean_request_s"),
    Column("paper_mean_request_s", "float64", "s", "paper_mean_request_s"),
    Column("peak_memory_bytes", "Int64", "bytes", "run.peak_memory_bytes"),
    Column("policy", "string", "", "run.policy"),
    Column("run", "string", "", "run.run"),
)
"""One row per sub-scenario of the paper's HELM table: `scenario` is what was run, which need not be
all of `paper_scenario`; the paper's ran without compression. `minutes` are those of prefill and
decode; the paper's contain downloads, loading and metrics, too. `predicted_minutes` are the
planner's for the machine that was asked for."""

NOT_SHOWN = frozenset({"paper_scenario", "policy", "run"})
"""Columns too long for a table on a screen."""

COUNTS = ("max_eval_instances", "num_train_trials")
"""Arguments of a run entry that say how much of it is run."""

IDENTIFYING = ("subject", "mode", "difficulty", *COUNTS)
"""Arguments of a run entry that tell its runs from others of the scenario."""


def reproduction(
    costs: pd.DataFrame,
    entries: Sequence[str],
    paper: Sequence[Mapping[str, Any]],
    plan: Plan | None,
) -> pd.DataFrame:
    """Set runs beside the paper's rows; what was not run has only the paper's figures.

    Args:
        costs: efficiency table of the runs.
        entries: run entries of the paper's scenarios, in the same order.
        paper: rows of the paper's table.
        plan: for the machine that was asked for, with the paper's scenarios in the same order.
    """
    return frame_of(REPRODUCTION, _rows(costs, entries, paper, plan))


def _rows(
    costs: pd.DataFrame,
    entries: Sequence[str],
    paper: Sequence[Mapping[str, Any]],
    plan: Plan | None,
) -> Iterator[Mapping[str, Any]]:
    runs = [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in costs.to_dict("records")
    ]
    for index, (entry, row) in enumerate(zip(entries, paper, strict=True)):
        run = next((run for run in runs if is_of(str(run["run"]), entry)), {})
        seconds = run.get("request_s")
        yield {
            "scenario": without_arguments(entry, *COUNTS),
            "paper": row,
            "run": run,
            "minutes": None if seconds is None else seconds / 60,
            "predicted_minutes": plan.per_scenario[index].minutes if plan else None,
            "mean_request_s": None if seconds is None else seconds / run["requests"],
            "paper_mean_request_s": 60 * row["measured_minutes"] / row["num_requests"],
        }


def is_of(run: str, entry: str) -> bool:
    """Whether a run is of a run entry, whatever else its name says."""
    scenario, _, arguments = entry.partition(":")
    named, _, others = run.partition(":")
    wanted = [part for part in arguments.split(",") if part.partition("=")[0] in IDENTIFYING]
    return scenario == named and set(wanted) <= set(others.split(","))
