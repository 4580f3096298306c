"""Policies of all kinds on this machine: time and memory, predicted and measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flexgen_helm.bench.predictions import predicted
from flexgen_helm.bench.rates import measure_rates
from flexgen_helm.bench.report import Row
from flexgen_helm.bench.trial import OURS, Bench, Trial, TrialRow, UniformWorkload, run_trial
from flexgen_helm.errors import BenchmarkError
from flexgen_helm.planner.plan import Plan
from flexgen_helm.specs.hardware import Hardware, middle
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.opt_sizes import config_of
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.workload import RequestLengths

MACHINE = "machine"
"""The stage."""

ON_DISK: Mapping[str, float] = {"disk": 1.0}


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A model, a policy and requests to be measured."""

    size: str
    compression: str
    workload: UniformWorkload
    batch: int
    policy: Mapping[str, Any]

    @classmethod
    def of(
        cls, size: str, compression: str, batch: int, lengths: tuple[int, int], **policy: Any
    ) -> Configuration:
        """Return one of requests with so many prompt tokens and new tokens."""
        return cls(
            size=size,
            compression=compression,
            workload=UniformWorkload(*lengths),
            batch=batch,
            policy=policy,
        )

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.from_config(config_of(self.size))

    @property
    def lengths(self) -> RequestLengths:
        """Of its requests."""
        return RequestLengths(
            name=str(self.workload),
            num_requests=self.batch,
            prompt_len=self.workload.prompt_len,
            max_prompt_len=self.workload.prompt_len,
            new_tokens=self.workload.new_tokens,
            least_filled=1.0,
        )

    def predicted(self, policy: Mapping[str, Any], hardware: Hardware) -> Plan:
        """Return what a policy would take."""
        settings = Policy.from_settings(policy)
        return predicted(self.spec, self.compression, hardware, self.lengths, settings)

    def with_part(self, part: float) -> Configuration:
        """Return it with only this part of its requests."""
        return replace(self, batch=max(1, round(part * self.batch)))


CONFIGURATIONS = (
    Configuration.of("125m", "none", 64, (256, 32)),
    Configuration.of("125m", "none", 96, (512, 1)),
    Configuration.of("125m", "w4", 64, (256, 32)),
    Configuration.of("125m", "w4-kv4", 64, (256, 32)),
    Configuration.of("125m", "none", 256, (32, 96), weights=ON_DISK, cache=ON_DISK),
    Configuration.of("1.3b", "none", 32, (128, 16)),
    Configuration.of("1.3b", "none", 64, (128, 16), weights=ON_DISK),
    Configuration.of("1.3b", "none", 24, (512, 1), weights=ON_DISK),
    Configuration.of("1.3b", "none", 32, (128, 16), weights={"device": 0.5, "disk": 0.5}),
    Configuration.of(
        "1.3b", "none", 192, (32, 24), weights=ON_DISK, cache=ON_DISK, micro_batch_tokens=512
    ),
    Configuration.of("1.3b", "w4", 32, (64, 16)),
    Configuration.of("2.7b", "none", 48, (128, 8), weights=ON_DISK),
    Configuration.of("6.7b", "w4", 32, (64, 6)),
    Configuration.of("6.7b", "w4", 32, (64, 6), weights=ON_DISK),
)
"""From 125M to 6.7B, in memory and from disk, compressed or not, prefill only and decode-heavy."""


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
        return measure_rates(self._bench("125m"), device="cpu")

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
        return Bench.of_size(size, tokenizer=self.tokenizer, directory=self.directory)


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
    predicted = configuration.predicted(configuration.policy, hardware)
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
