"""What a run made of each instance: its scores, and the answers themselves."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from flexgen_helm.tables.sources import reading

ScoresByInstance = Mapping[str, Sequence[float]]
"""Instance id -> its score in each trial, by trial."""


class Answer(NamedTuple):
    """A completion."""

    text: str
    tokens: tuple[tuple[str, float], ...]
    """Each with its log-probability."""


class Changes(NamedTuple):
    """How some answers differ from those of a reference."""

    answers: int
    """Answers that both have given."""

    changed: int
    """Of these, those of another text."""

    logprob_change: float | None
    """Mean change of the log-probability of a token, over the tokens with which both answers to a
    request begin; `None` where they have none in common."""


def read_scores(directory: Path, *, metric: str, split: str) -> ScoresByInstance:
    """Return the scores of a run's unperturbed instances.

    Raises:
        TablesError: the file is damaged.
    """
    with reading(directory / "per_instance_stats.json") as path:
        scores: defaultdict[str, dict[int, float]] = defaultdict(dict)
        for entry in json.loads(path.read_text(encoding="utf-8")):
            if entry.get("perturbation") is not None:
                continue
            for stat in entry["stats"]:
                name = stat["name"]
                if name["name"] == metric and name.get("split") == split and stat["count"]:
                    score = stat["sum"] / stat["count"]
                    scores[entry["instance_id"]][entry["train_trial_index"]] = score
        return {
            instance: [score for _, score in sorted(by_trial.items())]
            for instance, by_trial in scores.items()
        }


def read_answers(directory: Path, *, split: str = "") -> dict[Hashable, Answer]:
    """Return the first completion of the requests of a run, by what was asked.

    Args:
        directory: of the run.
        split: of the instances, unperturbed ones, that are asked for; all if empty.

    Raises:
        TablesError: the file is damaged.
    """
    with reading(directory / "scenario_state.json") as path:
        states = json.loads(path.read_text(encoding="utf-8"))["request_states"]
        return {
            _question(state): _answer(state["result"]["completions"][0])
            for state in states
            if state.get("result", {}).get("completions") and _is_scored(state, split)
        }


def changes(reference: Mapping[Hashable, Answer], other: Mapping[Hashable, Answer]) -> Changes:
    """Compare the answers to what both were asked."""
    pairs = [(answer, other[asked]) for asked, answer in reference.items() if asked in other]
    common = [
        (ours[1], theirs[1])
        for before, after in pairs
        for ours, theirs in takewhile(_same_token, zip(before.tokens, after.tokens, strict=False))
    ]
    return Changes(
        answers=len(pairs),
        changed=sum(before.text != after.text for before, after in pairs),
        logprob_change=(
            sum(after - before for before, after in common) / len(common) if common else None
        ),
    )


def _is_scored(state: Mapping[str, Any], split: str) -> bool:
    instance = state.get("instance", {})
    return not split or (instance.get("split") == split and "perturbation" not in instance)


def _same_token(pair: tuple[tuple[str, float], tuple[str, float]]) -> bool:
    return pair[0][0] == pair[1][0]


def _question(state: Mapping[str, Any]) -> Hashable:
    """What tells the requests of a run apart, whatever the model."""
    request = state["request"]
    return (
        request["prompt"],
        request.get("random"),
        state.get("train_trial_index"),
        state.get("reference_index"),
        state.get("request_mode"),
        state.get("instance", {}).get("id"),
    )


def _answer(completion: Mapping[str, Any]) -> Answer:
    tokens = completion["tokens"]
    return Answer(
        text=completion["text"],
        tokens=tuple((token["text"], token.get("logprob", 0.0)) for token in tokens),
    )
