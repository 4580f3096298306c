"""Whether two runs of one suite, through different clients, come to the same scores."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from flexgen_helm.bench.helm_run import Timed
from flexgen_helm.tables.collect import scenario_metrics
from flexgen_helm.tables.compare import compare_settings

COSTS = ("batch_size", "inference_runtime", "inference_denoised_runtime")

FROM_LOGPROBS = ("logprob", "logprob_per_byte", "bits_per_byte", "perplexity", "max_prob")
"""HELM's client reports log-probabilities after dividing the logits by its temperature of 1e-7:
0 for every token it generates greedily."""

UNKNOWN_TO_HELM = (
    "finish_reason_length",
    "finish_reason_stop",
    "finish_reason_endoftext",
    "finish_reason_unknown",
)
"""HELM's client never tells why a completion ended."""

CALIBRATION = ("ece_", "platt_", "selective_")
"""Prefixes of what HELM works out from ``max_prob``."""

TOLERANCE = 1e-6
"""Relative difference up to which two means of the same numbers are equal."""

NAME_OF_STATISTIC = ["metric", "split", "sub_split", "perturbation", "computed_on"]


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """How the results of HELM's client and ours differ."""

    suite: str
    stage: str
    their_dtype: str
    our_dtype: str
    requests: int

    prompts_equal: bool
    """Whether both were asked the same, in the same order."""

    differing_completions: int
    """Requests with another text. Where dtypes round differently, a tie may tip either way, and
    everything after it differs."""

    metric: str
    """Main metric of the scenario."""

    their_score: float
    our_score: float

    statistics: int
    """Statistics compared: all of HELM's but costs and those known to differ by definition."""

    scores_equal: bool
    """Whether all of them agree, the main metric among them."""

    largest_difference: float
    """Between the means of any of them."""

    largest_difference_of: str
    """Its metric."""


class AnsweredPrompt(NamedTuple):
    """A request and what came of it."""

    prompt: str
    texts: list[str]


def compare_runs(theirs: Timed, ours: Timed) -> ScoreRow:
    """Compare what HELM's client and ours made of one suite."""
    pairs = list(zip(_answers(theirs.results), _answers(ours.results), strict=True))
    means = {"theirs": _means(theirs.results), "ours": _means(ours.results)}
    table = pd.concat(means, axis=1).fillna(0.0)
    differences = (table["theirs"] - table["ours"]).abs()
    limits = TOLERANCE * table.abs().max(axis=1)
    metric, their_score = _main_score(theirs.results)
    _, our_score = _main_score(ours.results)
    return ScoreRow(
        suite=theirs.row.suite,
        stage=theirs.row.stage,
        their_dtype=theirs.row.dtype,
        our_dtype=ours.row.dtype,
        requests=len(pairs),
        prompts_equal=all(their.prompt == our.prompt for their, our in pairs),
        differing_completions=sum(their.texts != our.texts for their, our in pairs),
        metric=metric,
        their_score=their_score,
        our_score=our_score,
        statistics=len(table),
        scores_equal=bool((differences <= limits).all()),
        largest_difference=float(differences.max()),
        largest_difference_of=_metric(differences.idxmax()),
    )


def _means(results: Path) -> pd.Series[float]:
    """Means of the statistics that say something about quality, by `NAME_OF_STATISTIC`."""
    table = scenario_metrics(results)
    other = table["metric"].isin([*COSTS, *FROM_LOGPROBS, *UNKNOWN_TO_HELM])
    calibration = table["metric"].str.startswith(CALIBRATION)
    kept = table[~other & ~calibration].fillna(dict.fromkeys(NAME_OF_STATISTIC, ""))
    # A statistic of nothing has no mean.
    return kept.set_index(NAME_OF_STATISTIC)["mean"].fillna(0.0)


def _metric(name: Hashable) -> str:
    assert isinstance(name, tuple)
    return str(name[NAME_OF_STATISTIC.index("metric")])


def _main_score(results: Path) -> tuple[str, float]:
    """Main metric of the only run there is, and its value."""
    [row] = compare_settings(results).to_dict("records")
    return row["metric"], row["score"]


def _answers(results: Path) -> list[AnsweredPrompt]:
    """Return what was asked, in HELM's order."""
    [path] = results.glob("*/scenario_state.json")
    states = json.loads(path.read_text(encoding="utf-8"))["request_states"]
    return [
        AnsweredPrompt(
            prompt=state["request"]["prompt"],
            texts=[completion["text"] for completion in state["result"]["completions"]],
        )
        for state in states
    ]
