"""The policy the planner chooses beside many others, all measured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from statistics import median
from typing import Any

from tqdm import tqdm

from flexgen_helm.bench.plan_machine import Configuration, Machine
from flexgen_helm.bench.predictions import planned
from flexgen_helm.bench.report import Row
from flexgen_helm.specs.hardware import Hardware

SWEEP = "sweep"
"""The stage."""

KEPT = (12, 6)
"""When all policies of the sweep were measured once, so many, those of least median so far, are
measured again in one round after another, to find those that might be best."""

FINALISTS, FINAL_ROUNDS = 4, 9
"""Those that might be best, and rounds in which they and the planned one are measured anew: that
they were the best of many they owe to chance, too, which must not count."""

SWEPT = (
    Configuration.of("125m", "none", 64, (128, 32)),
    Configuration.of("125m", "w4", 48, (256, 8)),
)
"""Requests of which each policy of `swept_policies` runs all."""


def swept_policies() -> Iterator[dict[str, Any]]:
    """Yield policies of all shapes and placements."""
    for tokens, size, (weights, cache) in product(
        (128, 512, 2048), (8, 32, 128), product((0.0, 0.5, 1.0), (0.0, 1.0))
    ):
        yield {
            "micro_batch_tokens": tokens,
            "micro_batch_size": size,
            "weights": {"device": 1 - weights, "disk": weights},
            "cache": {"device": 1 - cache, "disk": cache},
        }


def sweep_rows(configuration: Configuration, machine: Machine, *, number: int) -> Iterator[Row]:
    """Measure the planned policy and all others; then those that might be best beside it, anew.

    What one round measured is compared with that alone, as the machine may be slow for a while.
    """
    configuration = configuration.with_part(machine.part)
    hardware = machine.rates()
    policies = [_planned(configuration, hardware), *swept_policies()]
    seconds: list[list[float]] = [[] for _ in policies]
    best = [*range(1, len(policies))]
    total = len(best) + sum(KEPT) + FINAL_ROUNDS * (1 + FINALISTS)
    name = f"policies of opt-{configuration.size}, {configuration.compression}"
    with tqdm(total=total, desc=name, unit="run") as bar:

        def measure(index: int) -> float:
            row = machine.measure(
                configuration, policies[index], number=number + index, stage=SWEEP
            )
            bar.update()
            return row.total_s

        for kept in (*KEPT, FINALISTS):
            for index in best:
                seconds[index].append(measure(index))
            best = sorted(best, key=lambda index: median(seconds[index]))[:kept]
        finals: dict[int, list[float]] = {index: [] for index in (0, *best)}
        for turn in range(FINAL_ROUNDS):
            for index in sorted(finals, reverse=turn % 2 == 1):
                finals[index].append(measure(index))
    for index, policy in enumerate(policies):
        took = finals.get(index, seconds[index])
        ratio = None
        if index in finals:
            ratio = median(p / this for p, this in zip(finals[0], took, strict=True))
        yield {
            "model": f"opt-{configuration.size}",
            "compression": configuration.compression,
            "kind": "swept" if index else "planned",
            "micro_batch_tokens": policy["micro_batch_tokens"],
            "micro_batch_size": policy["micro_batch_size"],
            "weights_on_disk": policy["weights"]["disk"],
            "cache_on_disk": policy["cache"]["disk"],
            "predicted_s": configuration.predicted(policy, hardware).predicted_s,
            "measured_s": median(took),
            "times": len(took),
            "planned_over_this": ratio,
        }


def _planned(configuration: Configuration, hardware: Hardware) -> dict[str, Any]:
    """Return the policy that is planned for a configuration."""
    chosen = planned(
        configuration.spec, configuration.compression, hardware, configuration.lengths
    ).policy
    return {
        "micro_batch_tokens": chosen.micro_batch_tokens,
        "micro_batch_size": chosen.micro_batch_size,
        "num_micro_batches": chosen.num_micro_batches,
        **{
            name: {"device": placed.device, "host": placed.host, "disk": placed.disk}
            for name, placed in (("weights", chosen.weights), ("cache", chosen.cache))
        },
    }
