"""Runs beside those of the reference setting, instance by instance."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flexgen_helm.tables.columns import UNQUANTIZED_BITS
from flexgen_helm.tables.instances import (
    Answer,
    Changes,
    ScoresByInstance,
    changes,
    read_answers,
    read_scores,
)
from flexgen_helm.tables.main_metrics import UNBOUNDED_METRICS
from flexgen_helm.tables.scores import Score, Totals, score_of
from flexgen_helm.tables.statistics import Scores, resampled_means


@dataclass(frozen=True, eq=False)
class Run:
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
            *setting_order(cost),
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
class Pair:
    """A run beside its reference."""

    run: Run
    reference: Run | None

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

    @property
    def throughput_ratio(self) -> float | None:
        """Its throughput over that of the reference."""
        if self.reference is None:
            return None
        return throughput_over(self.run.cost, self.reference.cost)

    @cached_property
    def resampled(self) -> Scores | None:
        """Mean differences of bootstrap samples; `None` where no scores of instances are known."""
        before, after = self.instances
        if not len(before):
            return None
        return resampled_means(after - before, seed=zlib.crc32(self.run.cost["task"].encode()))


def runs_of(
    directories: Sequence[Path], costs: pd.DataFrame, totals: Totals, metric: str | None
) -> Iterator[Run]:
    """Yield the runs in some directories, with their rows of the efficiency table."""
    for directory, row in zip(directories, costs.to_dict("records"), strict=True):
        cost = {str(name): value for name, value in row.items() if not pd.isna(value)}
        identity = {name: cost[name] for name in ("suite", "run", "scenario")}
        yield Run(directory, cost, score_of(**identity, totals=totals, metric=metric))


def setting_order(cost: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort key: from uncompressed to most compressed."""
    return (
        -cost.get("weight_bits", UNQUANTIZED_BITS),
        -cost.get("cache_bits", UNQUANTIZED_BITS),
        cost.get("group_size", 0),
        -cost.get("attention_percent", 100),
        cost.get("dtype", ""),
    )


def pairs_of(runs: Sequence[Run], reference: str) -> Iterator[Pair]:
    """Yield each run beside its reference; see `compare`."""
    references: defaultdict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        if run.cost.get("compression") == reference:
            references[run.comparable].append(run)
    for run in runs:
        yield Pair(run, _nearest(run, references[run.comparable]))


def _nearest(run: Run, references: Sequence[Run]) -> Run | None:
    def distance(reference: Run) -> tuple[bool, bool, bool]:
        dtype = reference.cost.get("dtype")
        return (
            reference.cost["suite"] != run.cost["suite"],
            dtype != run.cost.get("dtype"),
            dtype != "float32",
        )

    return min(references, key=distance, default=None)


def throughput_over(cost: Mapping[str, Any], reference: Mapping[str, Any]) -> float | None:
    """Return a throughput over another; `None` where one is not known."""
    throughput, other = cost.get("throughput"), reference.get("throughput")
    return throughput / other if throughput is not None and other else None
