"""Scores of compressed models beside those of the model as it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from flexgen_helm.errors import TablesError
from flexgen_helm.specs.compression import Compression
from flexgen_helm.tables.collect import costs_of, metrics_of
from flexgen_helm.tables.columns import COMPARISON, OVERALL, Sources, frame_of
from flexgen_helm.tables.overall import overall_rows
from flexgen_helm.tables.pairing import Pair, Run, pairs_of, runs_of
from flexgen_helm.tables.run_directories import complete_runs
from flexgen_helm.tables.scores import require_known, totals_of
from flexgen_helm.tables.statistics import compare_pairs, holm, interval_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

AS_IT_IS = "none"
"""Compression label of what others are compared with, unless another is named."""


class Comparison(NamedTuple):
    """Settings compared."""

    settings: pd.DataFrame
    """One row per run, columns `columns.COMPARISON`."""

    overall: pd.DataFrame
    """One row per setting, columns `columns.OVERALL`."""

    costs: pd.DataFrame
    """One row per run, columns `columns.EFFICIENCY`."""


def compare(
    path: str | Path,
    *,
    metric: str | None = None,
    reference: str = AS_IT_IS,
    deployments: Collection[str] | None = None,
) -> Comparison:
    """Compare settings: scores, answers and costs of every run with those of its reference.

    The *reference* of a run is a run with the reference setting (the uncompressed one, unless
    another is named) of the same model and task, scored by the same metric on the same split and
    number of instances: in its own suite if there is one, and of its own dtype, else float32, if
    there are several. Without a reference the differences are missing. Scores are of instances as
    they are, not of perturbed ones; an instance's score is its mean over trials.

    Args:
        path: HELM's output directory, its ``runs`` folder, one suite or one run.
        metric: name of a HELM metric; without it, the main metric of each scenario.
        reference: compression label of the reference.
        deployments: those that are looked at; all of them if left out.

    Returns:
        One row per run, sorted by suite, scenario, task, model and from uncompressed to most
        compressed; one row per setting, over the tasks that all settings of its model have, but
        for those whose scores are not parts of 1; and what each run cost.

    Raises:
        TablesError: no complete run, a damaged file, no run that has `metric`, or none of a
            reference that is not the usual one.
    """
    directories = complete_runs(path)
    costs = costs_of(directories)
    if deployments is not None:
        kept = costs["deployment"].isin(deployments)
        directories = [run for run, keep in zip(directories, kept, strict=True) if keep]
        costs = costs[kept].reset_index(drop=True)
    totals = totals_of(metrics_of(directories))
    if metric is not None:
        require_known(metric, totals)
    reference = Compression.parse(reference).label
    if reference != AS_IT_IS:
        _require_reference(reference, costs)
    runs = sorted(runs_of(directories, costs, totals, metric), key=lambda run: run.order)
    pairs = list(pairs_of(runs, reference))
    return Comparison(
        settings=frame_of(COMPARISON, _rows(pairs)),
        overall=frame_of(OVERALL, overall_rows(pairs)),
        costs=costs,
    )


def compare_settings(
    path: str | Path, *, metric: str | None = None, reference: str = AS_IT_IS
) -> pd.DataFrame:
    """Return the first table of `compare`, one row per run."""
    return compare(path, metric=metric, reference=reference).settings


def _require_reference(reference: str, costs: pd.DataFrame) -> None:
    labels = sorted(costs["compression"].dropna().unique())
    if reference not in labels:
        raise TablesError(
            f"reference {reference!r} is the setting of none of the runs: use one of"
            f" {', '.join(labels)}"
        )


def _rows(pairs: Sequence[Pair]) -> Iterator[Sources]:
    tests = {
        pair: compare_pairs(*pair.instances)
        for pair in pairs
        if pair.differs and len(pair.instances[0])
    }
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    for pair in pairs:
        test = tests[pair]._asdict() | {"p_adjusted": adjusted[pair]} if pair in tests else None
        yield {
            "run": pair.run.cost,
            "score": asdict(pair.run.score) if pair.run.score else None,
            "against_reference": _against(pair, pair.reference, test) if pair.reference else None,
        }


def _against(pair: Pair, reference: Run, test: Mapping[str, Any] | None) -> dict[str, Any]:
    against: dict[str, Any] = {
        "run": reference.name,
        "difference": pair.difference,
        "throughput_ratio": pair.throughput_ratio,
        "test": test,
    }
    if pair.differs:
        means = pair.resampled
        against["interval"] = None if means is None else interval_of(means)._asdict()
        against |= pair.changes._asdict() if pair.changes else {}
    return against
