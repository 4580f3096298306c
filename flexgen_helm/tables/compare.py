"""Scores of compressed models beside those of the model as it is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from flexgen_helm.tables.collect import costs_of, metrics_of
from flexgen_helm.tables.columns import COMPARISON, Sources, frame_of
from flexgen_helm.tables.run_directories import complete_runs
from flexgen_helm.tables.scores import Score, Totals, require_known, score_of, totals_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence
    from pathlib import Path

UNQUANTIZED_BITS = 16
"""Where missing bits stand in the order of settings: before every quantized one."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run with its score."""

    cost: Mapping[str, Any]
    """Its row of the efficiency table, without the missing cells."""

    score: Score | None
    """Its score; `None` if it has none of the metrics looked for."""

    @property
    def comparable(self) -> Hashable:
        """Runs for which this is equal differ in compression, dtype and suite only."""
        score = self.score
        scored_on = (score.metric, score.split, score.instances) if score else None
        return self.cost["model"], self.cost["task"], scored_on

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: what was asked of which model, then from uncompressed to most compressed."""
        cost = self.cost
        return (
            *(cost[name] for name in ("suite", "scenario", "task", "model")),
            -cost.get("weight_bits", UNQUANTIZED_BITS),
            -cost.get("cache_bits", UNQUANTIZED_BITS),
            cost.get("group_size", 0),
            -cost.get("attention_percent", 100),
            cost.get("dtype", ""),
            cost["run"],
        )


def compare_settings(path: str | Path, *, metric: str | None = None) -> pd.DataFrame:
    """Score and cost of every run, and how they differ from the uncompressed run of the same task.

    The *reference* of a run is an uncompressed run (compression ``none``) of the same model and
    task, scored by the same metric on the same split and number of instances: in its own suite if
    there is one, and of its own dtype, else float32, if there are several. Without a reference the
    differences are missing. Scores are of instances as they are, not of perturbed ones.

    Args:
        path: HELM's output directory, its ``runs`` folder, one suite or one run.
        metric: name of a HELM metric; without it, the main metric of each scenario.

    Returns:
        One row per run, columns `columns.COMPARISON`, sorted by suite, scenario, task, model and
        from uncompressed to most compressed.

    Raises:
        TablesError: no complete run, a damaged file, or no run that has `metric`.
    """
    directories = complete_runs(path)
    totals = totals_of(metrics_of(directories))
    if metric is not None:
        require_known(metric, totals)
    runs = _runs(costs_of(directories), totals, metric)
    return frame_of(COMPARISON, _rows(sorted(runs, key=lambda run: run.order)))


def _runs(costs: pd.DataFrame, totals: Totals, metric: str | None) -> Iterator[_Run]:
    for row in costs.to_dict("records"):
        cost = {str(name): value for name, value in row.items() if not pd.isna(value)}
        identity = {name: cost[name] for name in ("suite", "run", "scenario")}
        yield _Run(cost=cost, score=score_of(**identity, totals=totals, metric=metric))


def _rows(runs: Sequence[_Run]) -> Iterator[Sources]:
    uncompressed: defaultdict[Hashable, list[_Run]] = defaultdict(list)
    for run in runs:
        if run.cost.get("compression") == "none":
            uncompressed[run.comparable].append(run)
    for run in runs:
        reference = _nearest(run, uncompressed[run.comparable])
        yield {
            "run": run.cost,
            "score": asdict(run.score) if run.score else None,
            "against_reference": _against(run, reference) if reference else None,
        }


def _nearest(run: _Run, references: Sequence[_Run]) -> _Run | None:
    def distance(reference: _Run) -> tuple[bool, bool, bool]:
        dtype = reference.cost.get("dtype")
        return (
            reference.cost["suite"] != run.cost["suite"],
            dtype != run.cost.get("dtype"),
            dtype != "float32",
        )

    return min(references, key=distance, default=None)


def _against(run: _Run, reference: _Run) -> dict[str, Any]:
    throughput = run.cost.get("throughput")
    reference_throughput = reference.cost.get("throughput")
    return {
        "run": f"{reference.cost['suite']}/{reference.cost['run']}",
        "difference": (
            run.score.value - reference.score.value if run.score and reference.score else None
        ),
        "throughput_ratio": (
            throughput / reference_throughput
            if throughput is not None and reference_throughput
            else None
        ),
    }
