"""`bench plan`: the planner's predictions beside what was measured.

1. *paper*: the FlexGen paper's tables, with a T4's profile and upstream's own policies, and what
   the planner would choose instead. Nothing is measured.
2. *machine*: this machine, with policies of all kinds: time and memory, predicted and measured.
3. *sweep*: the policy the planner chooses beside many others, all measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from flexgen_helm.bench.plan_machine import MACHINE, Machine, machine_rows
from flexgen_helm.bench.plan_paper import PAPER
from flexgen_helm.bench.plan_sweep import SWEEP, SWEPT, sweep_rows
from flexgen_helm.bench.report import Cell, Row

STAGES = (PAPER, MACHINE, SWEEP)


def measured_rows(stages: Sequence[str], machine: Machine) -> Iterator[Row]:
    """Yield what stages measure, as it is known."""
    if MACHINE in stages:
        yield from machine_rows(machine)
    if SWEEP in stages:
        for number, configuration in enumerate(SWEPT, start=1):
            yield from sweep_rows(configuration, machine, number=100 * number)


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Return what the benchmark is about, as far as it was looked at."""
    found: dict[str, float] = {}
    cells = [row for row in rows if "measured_tokens_per_s" in row]
    if cells:
        found["paper_worst_error"] = max(abs(_number(row, "error")) for row in cells)
        found["paper_least_planned_over_upstream"] = min(
            _number(row, "planned_over_upstream") for row in cells
        )
    helm = [row for row in rows if "predicted_upstream_minutes" in row]
    if helm:
        measured = sum(_number(row, "measured_minutes") for row in helm)
        theirs = sum(_number(row, "predicted_upstream_minutes") for row in helm)
        found["helm_upstream_predicted_over_measured"] = theirs / measured
        found["helm_planned_hours"] = sum(_number(row, "planned_minutes") for row in helm) / 60
    timed = [row for row in rows if "planned_over_measured" in row]
    if timed:
        errors = [abs(_number(row, "error")) for row in timed]
        found["machine_median_error"], found["machine_worst_error"] = median(errors), max(errors)
        memory = [_number(row, "planned_over_measured") for row in timed]
        found["memory_least_planned_over_measured"] = min(memory)
        found["memory_most_planned_over_measured"] = max(memory)
    for name in dict.fromkeys((row["model"], row["compression"]) for row in rows if "kind" in row):
        swept = [
            row for row in rows if "kind" in row and (row["model"], row["compression"]) == name
        ]
        found[f"sweep_{name[0]}_{name[1]}_planned_over_best"] = max(
            _number(row, "planned_over_this")
            for row in swept
            if row["planned_over_this"] is not None
        )
    return {name: round(value, 3) for name, value in found.items()}


def _number(row: Row, name: str) -> float:
    value: Cell = row[name]
    assert isinstance(value, int | float), f"{name} is a figure"
    return value
