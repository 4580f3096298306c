"""What a benchmark of a GPU measures, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flexgen_helm.bench.gpu_trial import ACCELERATE, OURS, UPSTREAM, GpuTrial
from flexgen_helm.bench.gpu_workloads import (
    Requests,
    helm_requests,
    padded_requests,
    published_policies,
)
from flexgen_helm.bench.trial import UniformWorkload

PEERS = (UPSTREAM, ACCELERATE)
THROUGHPUT, HELM = "throughput", "helm"
STAGES = (THROUGHPUT, HELM)
SHARED, PADDED = "shared prefixes", "padded, in turn"

ACCELERATE_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class GpuBenchmark:
    """What is run."""

    stages: Sequence[str]
    models: Sequence[str]
    peers: Sequence[str]
    compressions: Sequence[str]
    """Of ours."""

    workload: UniformWorkload
    batch: int
    """Requests of ours in a throughput trial."""

    helm_model: str
    helm_share: float
    """Part of the paper's requests of each sub-scenario."""

    cap_bytes: int


def trials(benchmark: GpuBenchmark, *, host_bytes: int) -> Iterator[GpuTrial]:
    """Yield what a benchmark measures, what it is about most first, as the time may run out.

    Args:
        benchmark: what is wanted.
        host_bytes: memory of the host, in which upstream has its cache.
    """
    models = benchmark.models if THROUGHPUT in benchmark.stages else ()
    found = {model: _throughput_trials(benchmark, model, host_bytes) for model in models}
    for model in models[:1]:
        yield from found[model][OURS][:1] + found[model][UPSTREAM]
    if HELM in benchmark.stages:
        yield from _helm_trials(benchmark)
    for model in models[1:]:
        yield from found[model][OURS][:1] + found[model][UPSTREAM]
    for model in models:
        yield from found[model][OURS][1:] + found[model][ACCELERATE]


def _helm_trials(benchmark: GpuBenchmark) -> Iterator[GpuTrial]:
    for setting, requests in (
        (SHARED, [*helm_requests(benchmark.helm_share)]),
        (PADDED, [*padded_requests(benchmark.helm_share)]),
    ):
        yield GpuTrial(
            stage=HELM,
            system=OURS,
            setting=setting,
            model=benchmark.helm_model,
            requests=requests,
            in_turn=setting == PADDED,
            compression=benchmark.compressions[0],
            cap_bytes=benchmark.cap_bytes,
        )


def _throughput_trials(
    benchmark: GpuBenchmark, model: str, host_bytes: int
) -> dict[str, list[GpuTrial]]:
    """Those of a model, by system."""

    def trial(system: str, setting: str, batch: int, **others: Any) -> GpuTrial:
        requests = Requests(
            name=str(benchmark.workload),
            count=batch,
            shared=0,
            least_own=benchmark.workload.prompt_len,
            most_own=benchmark.workload.prompt_len,
            new_tokens=benchmark.workload.new_tokens,
        )
        return GpuTrial(
            stage=THROUGHPUT,
            system=system,
            setting=setting,
            model=model,
            requests=[requests],
            cap_bytes=benchmark.cap_bytes,
            **others,
        )

    found: dict[str, list[GpuTrial]] = {
        OURS: [
            trial(OURS, label, benchmark.batch, compression=label)
            for label in benchmark.compressions
        ],
        UPSTREAM: [],
        ACCELERATE: [],
    }
    if UPSTREAM in benchmark.peers:
        policies = published_policies(model, benchmark.workload, host_bytes=host_bytes)
        found[UPSTREAM] = [trial(UPSTREAM, p.name, p.batch, options=p.options) for p in policies]
    if ACCELERATE in benchmark.peers:
        found[ACCELERATE] = [trial(ACCELERATE, "weights on the host", ACCELERATE_BATCH)]
    return found
