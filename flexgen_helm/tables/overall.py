"""Settings over all tasks together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flexgen_helm.tables.columns import Sources
from flexgen_helm.tables.pairing import Pair, setting_order, throughput_over
from flexgen_helm.tables.statistics import interval_of


def overall_rows(pairs: Sequence[Pair]) -> Iterator[Sources]:
    """Rows of the models of each suite, setting by setting."""
    models: defaultdict[Hashable, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.difference is not None and pair.run.score_is_part:
            models[pair.run.cost["suite"], pair.run.cost["model"]].append(pair)
    for model in models.values():
        settings: defaultdict[tuple[Any, ...], dict[str, Pair]] = defaultdict(dict)
        for pair in model:
            settings[setting_order(pair.run.cost)][pair.run.cost["task"]] = pair
        tasks = sorted(set.intersection(*(set(by_task) for by_task in settings.values())))
        if tasks:
            for _, by_task in sorted(settings.items(), key=lambda setting: setting[0]):
                yield _overall([by_task[task] for task in tasks])


def _overall(pairs: Sequence[Pair]) -> Sources:
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
            "interval": interval_of(np.mean(resampled, axis=0))._asdict() if complete else None,
            "answers": sum(each.answers for each in changed),
            "changed": sum(each.changed for each in changed),
            "throughput_ratio": throughput_over(cost, before),
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


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
