"""Scores of compressed models beside those of the model as it is."""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from flexgen_helm.errors import TablesError
from flexgen_helm.specs.compression import Compression
from flexgen_helm.tables.collect import costs_of, metrics_of
from flexgen_helm.tables.columns import (
    COMPARISON,
    OVERALL,
    UNQUANTIZED_BITS,
    Sources,
    frame_of,
)
from flexgen_helm.tables.instances import (
    Answer,
    Changes,
    ScoresByInstance,
    changes,
    read_answers,
    read_scores,
)
from flexgen_helm.tables.main_metrics import UNBOUNDED_METRICS
from flexgen_helm.tables.run_directories import complete_runs
from flexgen_helm.tables.scores import Score, Totals, require_known, score_of, totals_of
from flexgen_helm.tables.statistics import Scores, compare_pairs, holm, interval_of, resampled_means

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True, eq=False)
class _Run:
    """A run with its score."""

    directory: Path
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
            *_setting_order(cost),
            cost["run"],
        )

    @property
    def score_is_part(self) -> bool:
        """Whether its score is a part of 1 and better if larger, as most of HELM's are."""
        return self.score is not None and self.score.metric not in UNBOUNDED_METRICS

    @property
    def name(self) -> str:
        return f"{self.cost['suite']}/{self.cost['run']}"

    @cached_property
    def scores(self) -> ScoresByInstance:
        """Its score on each instance."""
        if self.score is None:
            return {}
        return read_scores(self.directory, metric=self.score.metric, split=self.score.split)

    @cached_property
    def answers(self) -> Mapping[Hashable, Answer]:
        """Its answers to what was scored; kept, as several runs are compared with a reference."""
        return self.read_answers()

    def read_answers(self) -> Mapping[Hashable, Answer]:
        return read_answers(self.directory, split=self.score.split if self.score else "")


@dataclass(frozen=True, eq=False)
class _Pair:
    """A run beside its reference."""

    run: _Run
    reference: _Run | None

    @property
    def differs(self) -> bool:
        """Whether there is a reference, and it is another run."""
        return self.reference is not None and self.reference is not self.run

    @property
    def difference(self) -> float | None:
        if self.reference is None or self.run.score is None or self.reference.score is None:
            return None
        return self.run.score.value - self.reference.score.value

    @cached_property
    def instances(self) -> tuple[Scores, Scores]:
        """Mean scores over trials of the instances both were scored on: reference, run."""
        if self.reference is None:
            return np.empty(0), np.empty(0)
        before, after = self.reference.scores, self.run.scores
        both = sorted(before.keys() & after.keys())
        return (
            np.array([np.mean(before[instance]) for instance in both]),
            np.array([np.mean(after[instance]) for instance in both]),
        )

    @cached_property
    def changes(self) -> Changes | None:
        """How the answers differ; `None` without a reference."""
        if self.reference is None:
            return None
        answers = self.run.read_answers() if self.differs else self.reference.answers
        return changes(self.reference.answers, answers)

    @cached_property
    def resampled(self) -> Scores | None:
        """Mean differences of bootstrap samples; `None` where no scores of instances are known."""
        before, after = self.instances
        if not len(before):
            return None
        return resampled_means(after - before, seed=zlib.crc32(self.run.cost["task"].encode()))


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
    if reference != AS_IT_IS:
        _require_reference(Compression.parse(reference).label, costs)
    runs = sorted(_runs(directories, costs, totals, metric), key=lambda run: run.order)
    pairs = list(_pairs(runs, Compression.parse(reference).label))
    return Comparison(
        settings=frame_of(COMPARISON, _rows(pairs)),
        overall=frame_of(OVERALL, _overall_rows(pairs)),
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


def _runs(
    directories: Sequence[Path], costs: pd.DataFrame, totals: Totals, metric: str | None
) -> Iterator[_Run]:
    for directory, row in zip(directories, costs.to_dict("records"), strict=True):
        cost = {str(name): value for name, value in row.items() if not pd.isna(value)}
        identity = {name: cost[name] for name in ("suite", "run", "scenario")}
        yield _Run(directory, cost, score_of(**identity, totals=totals, metric=metric))


def _setting_order(cost: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        -cost.get("weight_bits", UNQUANTIZED_BITS),
        -cost.get("cache_bits", UNQUANTIZED_BITS),
        cost.get("group_size", 0),
        -cost.get("attention_percent", 100),
        cost.get("dtype", ""),
    )


def _pairs(runs: Sequence[_Run], reference: str) -> Iterator[_Pair]:
    references: defaultdict[Hashable, list[_Run]] = defaultdict(list)
    for run in runs:
        if run.cost.get("compression") == reference:
            references[run.comparable].append(run)
    for run in runs:
        yield _Pair(run, _nearest(run, references[run.comparable]))


def _nearest(run: _Run, references: Sequence[_Run]) -> _Run | None:
    def distance(reference: _Run) -> tuple[bool, bool, bool]:
        dtype = reference.cost.get("dtype")
        return (
            reference.cost["suite"] != run.cost["suite"],
            dtype != run.cost.get("dtype"),
            dtype != "float32",
        )

    return min(references, key=distance, default=None)


def _rows(pairs: Sequence[_Pair]) -> Iterator[Sources]:
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


def _against(pair: _Pair, reference: _Run, test: Mapping[str, Any] | None) -> dict[str, Any]:
    against: dict[str, Any] = {
        "run": reference.name,
        "difference": pair.difference,
        "throughput_ratio": _ratio(pair.run.cost, reference.cost),
        "test": test,
    }
    if pair.differs:
        against["interval"] = _interval(pair.resampled)
        against |= pair.changes._asdict() if pair.changes else {}
    return against


def _ratio(cost: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    throughput, other = cost.get("throughput"), reference.get("throughput")
    return throughput / other if throughput is not None and other else None


def _overall_rows(pairs: Sequence[_Pair]) -> Iterator[Sources]:
    """Rows of the models of each suite, setting by setting."""
    models: defaultdict[Hashable, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.difference is not None and pair.run.score_is_part:
            models[pair.run.cost["suite"], pair.run.cost["model"]].append(pair)
    for model in models.values():
        settings: defaultdict[tuple[Any, ...], dict[str, _Pair]] = defaultdict(dict)
        for pair in model:
            settings[_setting_order(pair.run.cost)][pair.run.cost["task"]] = pair
        tasks = sorted(set.intersection(*(set(by_task) for by_task in settings.values())))
        if tasks:
            for _, by_task in sorted(settings.items(), key=lambda setting: setting[0]):
                yield _overall([by_task[task] for task in tasks])


def _overall(pairs: Sequence[_Pair]) -> Sources:
    """One setting over several tasks, each of which counts as much as any other."""
    resampled = [pair.resampled for pair in pairs if pair.resampled is not None]
    complete = len(resampled) == len(pairs) and any(pair.differs for pair in pairs)
    cost = _sum_of_costs(pair.run.cost for pair in pairs)
    before = _sum_of_costs(pair.reference.cost for pair in pairs if pair.reference)
    changed = [pair.changes for pair in pairs if pair.changes]
    return {
        "run": pairs[0].run.cost,
        "cost": cost,
        "score": {
            "tasks": len(pairs),
            "instances": sum(len(pair.instances[0]) for pair in pairs),
            "value": _mean(pair.run.score.value for pair in pairs if pair.run.score),
        },
        "against_reference": {
            "difference": _mean(pair.difference for pair in pairs if pair.difference is not None),
            "interval": _interval(np.mean(resampled, axis=0) if complete else None),
            "answers": sum(each.answers for each in changed),
            "changed": sum(each.changed for each in changed),
            "throughput_ratio": _ratio(cost, before),
        },
    }


def _sum_of_costs(costs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What some runs cost together; nothing of what is not known of all of them."""
    listed = list(costs)

    def known(name: str) -> list[Any] | None:
        values = [cost.get(name) for cost in listed]
        return None if None in values else values

    cached, tokens_cached = (
        sum(cost.get(name, 0) for cost in listed) for name in ("cache_bytes", "cached_tokens")
    )
    seconds, tokens, peaks = map(known, ("request_s", "generated_tokens", "peak_memory_bytes"))
    return {
        "request_s": sum(seconds) if seconds else None,
        "throughput": sum(tokens) / sum(seconds) if tokens and seconds and sum(seconds) else None,
        "peak_memory_bytes": max(peaks) if peaks else None,
        "cache_bytes_per_token": cached / tokens_cached if tokens_cached else None,
    }


def _interval(means: Scores | None) -> dict[str, float] | None:
    return None if means is None else interval_of(means)._asdict()


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
