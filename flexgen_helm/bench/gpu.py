"""`bench gpu`: a large card made small, by ours, upstream FlexGen and accelerate.

1. *machine*: what the card and its link can do, by calibration.
2. *throughput*: OPT-6.7B and OPT-30B with random weights and prompts of one length, under a cap on
   the card's memory: ours with the policy it plans, upstream with those it published, accelerate
   with weights in the host's memory.
3. *helm*: the paper's seven sub-scenarios with fewer requests, their real lengths and what they
   share, all at once, beside upstream's way: one sub-scenario after another, all prompts padded to
   the paper's lengths, and nothing shared.

Everything runs in processes of its own, one after another, as long as there is time: what did not
come to its turn, or to its end, is in the report without figures. First comes what the benchmark is
about: the first model with ours and with upstream's policies, then the sub-scenarios.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flexgen_helm.bench.gpu_benchmark import (
    ACCELERATE_BATCH,
    HELM,
    PADDED,
    PEERS,
    SHARED,
    THROUGHPUT,
    GpuBenchmark,
    trials,
)
from flexgen_helm.bench.gpu_session import GpuSession
from flexgen_helm.bench.gpu_trial import OURS, PILOT_TOKENS, UPSTREAM_TOKENS, GpuRow
from flexgen_helm.bench.report import Cell, Report, Row
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.units import format_bytes

IN_SHORT = (
    "stage", "model", "system", "setting", "tokens_per_s", "seconds", "reserved_bytes", "problem"
)  # fmt: skip


def run_gpu_benchmark(
    benchmark: GpuBenchmark, session: GpuSession, hardware: Hardware, conditions: Mapping[str, Cell]
) -> Report:
    """Carry out a benchmark on a machine that was measured, and report it."""
    asked = trials(benchmark, host_bytes=hardware.host_bytes)
    rows = [session.run(trial, hardware) for trial in asked]
    rates: Row = {
        "product_flop_per_s": hardware.product_flop_per_s.most,
        "host_to_device_bytes_per_s": hardware.host_to_device_bytes_per_s,
        "device_to_host_bytes_per_s": hardware.device_to_host_bytes_per_s,
        "disk_read_bytes_per_s": hardware.disk_read_bytes_per_s,
    }
    return Report(
        ratios=ratios(rows, hardware),
        conditions={
            **conditions,
            "card": hardware.conditions.get("device", ""),
            "cap": format_bytes(benchmark.cap_bytes),
            "requests": "random tokens, greedy",
            "flexgen": "policies as published, with as many batches as the host has memory for;"
            f" {UPSTREAM_TOKENS} tokens timed, the rest as it projects them itself",
            "throughput": "generated tokens over prefill and decode time, without loading",
            "accelerate": f"{ACCELERATE_BATCH} requests, {PILOT_TOKENS} tokens timed, the rest at"
            " the speed of the last",
        },
        rows=[rates, *(row.flat() for row in rows), *map(_in_short, rows)],
    )


def _in_short(row: GpuRow) -> Row:
    """Return what one wants to see last."""
    everything = row.flat()
    return {name: everything.get(name) or None for name in IN_SHORT}


def ratios(rows: Sequence[GpuRow], hardware: Hardware) -> dict[str, float]:
    """Return what the benchmark is about, as far as it was measured.

    A peer is compared with if all it might be best with came to its end, or would with no time.
    """
    found: dict[str, float] = {}
    throughput = [row for row in rows if row.stage == THROUGHPUT]
    for model in dict.fromkeys(row.model for row in throughput):
        best: dict[str, float] = {}
        unfinished: set[str] = set()
        for row in throughput:
            if row.model == model and row.unfinished:
                unfinished.add(row.system)
            elif row.model == model and row.outcome is not None:
                best[row.system] = max(best.get(row.system, 0.0), row.outcome.tokens_per_s)
        for peer in PEERS:
            if {OURS, peer} <= {*best} and peer not in unfinished:
                found[f"{model}_over_{peer}"] = best[OURS] / best[peer]
    seconds = {
        row.setting: row.outcome.seconds for row in rows if row.stage == HELM and row.outcome
    }
    if len(seconds) == 2:
        found["helm_over_padded"] = seconds[PADDED] / seconds[SHARED]
    ours = [(row, row.outcome) for row in rows if row.system == OURS and row.outcome]
    if ours:
        found["most_reserved_over_cap"] = max(o.reserved_bytes / row.cap_bytes for row, o in ours)
    rate = hardware.host_to_device_bytes_per_s
    copied = [o.link_bytes_per_s for _, o in ours if o.link_bytes_per_s]
    if rate and copied:
        found["most_link_over_measured"] = max(copied) / rate
    errors = [abs(o.predicted_s / o.seconds - 1) for _, o in ours if o.predicted_s]
    if errors:
        found["worst_prediction_error"] = max(errors)
    return {name: round(value, 3) for name, value in found.items()}
