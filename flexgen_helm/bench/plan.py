"""`bench plan`: the planner's predictions beside what was measured.

1. *paper*: the FlexGen paper's tables, with a T4's profile and upstream's own policies, and what
   the planner would choose instead. Nothing is measured.
2. *machine*: this machine, with policies of all kinds: time and memory, predicted and measured.
3. *sweep*: the policy the planner chooses beside many others, all measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from flexgen_helm.bench.report import Cell, Row
from flexgen_helm.bench.trial import OURS, Bench, Trial, TrialRow, Workload, ask, run_trial
from flexgen_helm.errors import BenchmarkError
from flexgen_helm.planner.block_load import UPSTREAM
from flexgen_helm.planner.plan import plan, predict
from flexgen_helm.specs import workload as workloads
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware, middle, read_hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.opt_sizes import SIZES, config_of, known_spec
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.shipped import flexgen_paper, hardware_profiles, scenarios_dir
from flexgen_helm.specs.workload import RequestLengths

PAPER, MACHINE, SWEEP = "paper", "machine", "sweep"
STAGES = (PAPER, MACHINE, SWEEP)

LONG_WORKLOAD = 2000
"""Requests of a workload in which the block may be of any size."""

ON_DISK: Mapping[str, float] = {"disk": 1.0}

KEPT = (12, 6)
"""When all policies of the sweep were measured once, so many, those of least median so far, are
measured again in one round after another, to find those that might be best."""

FINALISTS, FINAL_ROUNDS = 4, 9
"""Those that might be best, and rounds in which they and the planned one are measured anew: that
they were the best of many they owe to chance, too, which must not count."""


def paper_rows() -> list[Row]:
    """Predict the cells of the paper's throughput table."""
    paper, hardware = flexgen_paper(), _t4()
    rows: list[Row] = []
    for cell in paper["throughput"]:
        spec, compression = _spec(cell["model"]), Compression.parse(cell["compression"])
        policy = _policy(cell)
        block = _lengths(cell, num_requests=policy.effective_batch)
        made = predict(
            spec,
            compression,
            hardware,
            _workload(block),
            policy,
            cached_tokens=_unlimited(block),
            execution=UPSTREAM,
        )
        chosen = plan(
            spec, [compression], hardware, _workload(_lengths(cell, num_requests=LONG_WORKLOAD))
        )
        measured = cell["measured_tokens_per_s"]
        rows.append(
            {
                "model": cell["model"],
                "lengths": f"{cell['prompt_len']}/{cell['new_tokens']}",
                "compression": cell["compression"],
                "measured_tokens_per_s": measured,
                "predicted_tokens_per_s": made.throughput,
                "error": made.throughput / measured - 1,
                "planned_tokens_per_s": chosen.throughput,
                "planned_over_upstream": chosen.throughput / made.throughput,
            }
        )
    return rows


def paper_helm_rows(compression: str = "w4-kv4") -> list[Row]:
    """Predict the paper's HELM table: upstream's way and ours."""
    paper, hardware = flexgen_paper(), _t4()
    suite = workloads.Workload.from_json(
        (scenarios_dir() / "paper_7.lengths.json").read_text(), where="paper_7.lengths.json"
    )
    spec = _spec(paper["helm"]["model"])
    ours = plan(spec, [Compression.parse(compression)], hardware, suite)
    rows: list[Row] = []
    for cell, scenario in zip(paper["helm"]["rows"], ours.per_scenario, strict=True):
        assert cell["scenario"] == scenario.scenario, "both list the same scenarios"
        policy = _policy(cell)
        lengths = _lengths(cell, num_requests=cell["num_requests"])
        theirs = predict(
            spec,
            Compression(),
            hardware,
            _workload(lengths),
            policy,
            cached_tokens=_unlimited(lengths),
            execution=UPSTREAM,
        )
        rows.append(
            {
                "scenario": cell["scenario"],
                "requests": cell["num_requests"],
                "measured_minutes": cell["measured_minutes"],
                "predicted_upstream_minutes": theirs.predicted_s / 60,
                "planned_minutes": scenario.minutes,
                "computed_tokens_upstream": cell["num_requests"] * cell["prompt_len"],
                "unique_tokens": round(scenario.unique_tokens),
                "effective_batch": round(scenario.effective_batch),
            }
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A model, a policy and requests to be measured."""

    size: str
    compression: str
    workload: Workload
    batch: int
    policy: Mapping[str, Any]

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.from_config(config_of(self.size))

    def with_part(self, part: float) -> Configuration:
        """Return it with only this part of its requests."""
        return replace(self, batch=max(1, round(part * self.batch)))


def _configuration(
    size: str, compression: str, batch: int, lengths: tuple[int, int], **policy: Any
) -> Configuration:
    return Configuration(
        size=size,
        compression=compression,
        workload=Workload(*lengths),
        batch=batch,
        policy=policy,
    )


CONFIGURATIONS = (
    _configuration("125m", "none", 64, (256, 32)),
    _configuration("125m", "none", 96, (512, 1)),
    _configuration("125m", "w4", 64, (256, 32)),
    _configuration("125m", "w4-kv4", 64, (256, 32)),
    _configuration("125m", "none", 256, (32, 96), weights=ON_DISK, cache=ON_DISK),
    _configuration("1.3b", "none", 32, (128, 16)),
    _configuration("1.3b", "none", 64, (128, 16), weights=ON_DISK),
    _configuration("1.3b", "none", 24, (512, 1), weights=ON_DISK),
    _configuration("1.3b", "none", 32, (128, 16), weights={"device": 0.5, "disk": 0.5}),
    _configuration(
        "1.3b", "none", 192, (32, 24), weights=ON_DISK, cache=ON_DISK, micro_batch_tokens=512
    ),
    _configuration("1.3b", "w4", 32, (64, 16)),
    _configuration("2.7b", "none", 48, (128, 8), weights=ON_DISK),
    _configuration("6.7b", "w4", 32, (64, 6)),
    _configuration("6.7b", "w4", 32, (64, 6), weights=ON_DISK),
)
"""From 125M to 6.7B, in memory and from disk, compressed or not, prefill only and decode-heavy."""

SWEPT = (
    _configuration("125m", "none", 64, (128, 32)),
    _configuration("125m", "w4", 48, (256, 8)),
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


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and with what is measured."""

    hardware: Hardware | None
    """Rates of this machine; `None` to measure them anew around every configuration, as those of a
    machine that others use, too, drift."""

    directory: Path
    """For stores and logs."""

    tokenizer: Path
    rounds: int

    part: float = 1.0
    """Of each configuration's requests that are run, as all of them take long on a slow machine."""

    def rates(self) -> Hardware:
        """Return them as they are now."""
        if self.hardware is not None:
            return self.hardware
        answer = ask(
            "flexgen_helm.bench.rates",
            {"directory": str(self.directory), "device": "cpu"},
            self._bench("125m"),
            name="rates",
        )
        assert answer is not None, "nothing limits its memory"
        return Hardware.from_json(json.dumps(answer), where="what was measured")

    def measure(
        self, configuration: Configuration, policy: Mapping[str, Any], *, number: int, stage: str
    ) -> TrialRow:
        """Run a configuration with a policy, several times; return the run of median time."""
        bench = self._bench(configuration.size)
        trial = Trial(
            stage=stage,
            system=OURS,
            workload=configuration.workload,
            batch=configuration.batch,
            policy=policy,
            compression=configuration.compression,
        )
        rows = [run_trial(trial, bench, number=number) for _ in range(self.rounds)]
        rows.sort(key=lambda row: row.total_s)
        return rows[len(rows) // 2]

    def _bench(self, size: str) -> Bench:
        from flexgen_helm.model.dummy import write_dummy

        name = f"opt-{size}"
        directory = self.directory / name
        checkpoint = write_dummy(name, tokenizer=self.tokenizer, directory=directory)
        return Bench(checkpoint=checkpoint, directory=self.directory)


def machine_rows(machine: Machine) -> Iterator[Row]:
    """Measure all configurations, and set them beside what was predicted."""
    before = machine.rates()
    for number, whole in enumerate(CONFIGURATIONS):
        configuration = whole.with_part(machine.part)
        row = machine.measure(configuration, configuration.policy, number=number, stage=MACHINE)
        after = machine.rates()
        yield _machine_row(configuration, row, middle([before, after]))
        before = after


def _machine_row(configuration: Configuration, row: TrialRow, hardware: Hardware) -> Row:
    if row.prefill_s is None or row.decode_s is None or row.memory_bytes is None:
        raise BenchmarkError(
            f"opt-{configuration.size} {configuration.compression} was killed for want of memory:"
            " this benchmark needs 16 GB"
        )
    predicted = _predicted(configuration, configuration.policy, hardware)
    [scenario] = predicted.per_scenario
    return {
        "model": f"opt-{configuration.size}",
        "compression": configuration.compression,
        "requests": configuration.batch,
        "lengths": str(configuration.workload),
        "on_disk": ", ".join(sorted(configuration.policy.keys() & {"weights", "cache"})),
        "predicted_prefill_s": scenario.prefill_s,
        "measured_prefill_s": row.prefill_s,
        "predicted_decode_s": scenario.decode_s,
        "measured_decode_s": row.decode_s,
        "error": predicted.predicted_s / row.total_s - 1,
        "planned_bytes": row.planned_bytes,
        "memory_bytes": row.memory_bytes,
        "planned_over_measured": (row.planned_bytes or 0) / row.memory_bytes,
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
            "predicted_s": _predicted(configuration, policy, hardware).predicted_s,
            "measured_s": median(took),
            "times": len(took),
            "planned_over_this": ratio,
        }


def _planned(configuration: Configuration, hardware: Hardware) -> dict[str, Any]:
    """Return the policy that is planned for a configuration."""
    chosen = plan(
        configuration.spec,
        [Compression.parse(configuration.compression)],
        hardware,
        _workload(_requests(configuration)),
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


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Return what the benchmark is about, as far as it was looked at."""
    found: dict[str, float] = {}
    cells = [row for row in rows if "measured_tokens_per_s" in row]
    if cells:
        found["paper_worst_error"] = max(abs(_number(row, "error")) for row in cells)
        found["paper_least_planned_over_upstream"] = min(
            _number(row, "planned_over_upstream") for row in cells
        )
    helm = [row for row in rows if "predicted_upstream_minutes" in row]
    if helm:
        measured = sum(_number(row, "measured_minutes") for row in helm)
        theirs = sum(_number(row, "predicted_upstream_minutes") for row in helm)
        found["helm_upstream_predicted_over_measured"] = theirs / measured
        found["helm_planned_hours"] = sum(_number(row, "planned_minutes") for row in helm) / 60
    timed = [row for row in rows if "planned_over_measured" in row]
    if timed:
        errors = [abs(_number(row, "error")) for row in timed]
        found["machine_median_error"], found["machine_worst_error"] = median(errors), max(errors)
        memory = [_number(row, "planned_over_measured") for row in timed]
        found["memory_least_planned_over_measured"] = min(memory)
        found["memory_most_planned_over_measured"] = max(memory)
    for name in dict.fromkeys((row["model"], row["compression"]) for row in rows if "kind" in row):
        swept = [
            row for row in rows if "kind" in row and (row["model"], row["compression"]) == name
        ]
        found[f"sweep_{name[0]}_{name[1]}_planned_over_best"] = max(
            _number(row, "planned_over_this")
            for row in swept
            if row["planned_over_this"] is not None
        )
    return {name: round(value, 3) for name, value in found.items()}


def _number(row: Row, name: str) -> float:
    value: Cell = row[name]
    assert isinstance(value, int | float), f"{name} is a figure"
    return value


def _predicted(configuration: Configuration, policy: Mapping[str, Any], hardware: Hardware) -> Any:
    lengths = _requests(configuration)
    return predict(
        configuration.spec,
        Compression.parse(configuration.compression),
        hardware,
        _workload(lengths),
        Policy.from_settings(policy),
        cached_tokens=_unlimited(lengths),
    )


def _requests(configuration: Configuration) -> RequestLengths:
    workload = configuration.workload
    return RequestLengths(
        name=str(workload),
        num_requests=configuration.batch,
        prompt_len=workload.prompt_len,
        max_prompt_len=workload.prompt_len,
        new_tokens=workload.new_tokens,
        least_filled=1.0,
    )


def _unlimited(lengths: RequestLengths) -> int:
    """Room for all of them in the KV cache."""
    return lengths.num_requests * (lengths.max_prompt_len + lengths.new_tokens)


def _workload(lengths: RequestLengths) -> workloads.Workload:
    return workloads.Workload(name=lengths.name, scenarios=(lengths,))


def _lengths(cell: Mapping[str, Any], *, num_requests: int) -> RequestLengths:
    return RequestLengths(
        name=cell.get("scenario", cell.get("model", "")),
        num_requests=num_requests,
        prompt_len=cell["prompt_len"],
        max_prompt_len=cell["prompt_len"],
        new_tokens=cell["new_tokens"],
    )


def _policy(cell: Mapping[str, Any]) -> Policy:
    tokens = cell["policy"]["micro_batch_size"] * cell["prompt_len"]
    return Policy.from_settings({**cell["policy"], "micro_batch_tokens": tokens})


def _t4() -> Hardware:
    return read_hardware(hardware_profiles()["t4"])


def _spec(model: str) -> ModelSpec:
    spec = known_spec(model)
    assert spec is not None, f"the paper's models are among the sizes {', '.join(SIZES)}"
    return spec
