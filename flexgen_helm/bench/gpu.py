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

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from flexgen_helm.bench.gpu_workloads import (
    Requests,
    helm_requests,
    padded_requests,
    published_policies,
)
from flexgen_helm.bench.rates import measure_rates
from flexgen_helm.bench.report import Cell, Report, Row
from flexgen_helm.bench.trial import Bench, Workload, ask
from flexgen_helm.errors import CommandError, CommandTimeoutError
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.units import format_bytes

OURS, UPSTREAM, ACCELERATE = "flexgen_helm", "flexgen", "accelerate"
PEERS = (UPSTREAM, ACCELERATE)
THROUGHPUT, HELM = "throughput", "helm"
STAGES = (THROUGHPUT, HELM)
SHARED, PADDED = "shared prefixes", "padded, in turn"

PILOT_TOKENS = 4
"""New tokens that accelerate is timed with: each takes as long as the one before."""

UPSTREAM_TOKENS = 8
"""New tokens that upstream is timed with; it projects the rest from these, by a rule of its own."""

ACCELERATE_BATCH = 8
ENOUGH_S = 10.0
"""With less time left, nothing is begun."""

ROWS_FILE = "rows.jsonl"

DERIVED = ("seconds", "tokens_per_s", "link_bytes_per_s")
"""What follows from an outcome's other figures."""

IN_SHORT = (
    "stage", "model", "system", "setting", "tokens_per_s", "seconds", "reserved_bytes", "problem"
)  # fmt: skip

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class GpuTrial:
    """What one process is to measure."""

    stage: str
    system: str
    setting: str
    model: str
    """A size, such as ``30b``."""

    requests: Sequence[Requests]
    cap_bytes: int
    in_turn: bool = False
    """Whether each kind of requests waits for the one before, as if they were runs of their own."""

    compression: str = "none"
    """Of ours."""

    options: Sequence[str] = ()
    """Of upstream's command line."""


@dataclass(frozen=True, kw_only=True)
class GpuOutcome:
    """What its process reports."""

    prefill_s: float
    decode_s: float
    generated_tokens: int
    allocated_bytes: int
    """Peak of what tensors took on the device."""

    reserved_bytes: int
    """Peak of what the process took there for tensors."""

    host_bytes: int | None = None
    """Peak of what the process took on the host, libraries and what reads files included."""

    allocation_retries: int | None = None
    """How often there was no memory until all that was kept for reuse had been given back."""

    decode_to_device_bytes: int | None = None
    """Copied from the host to the device in decode, which is where a link may be the limit."""

    link_wait_s: float | None = None
    predicted_s: float | None = None
    policy: str = ""

    @property
    def seconds(self) -> float:
        """Time of prefill and decode."""
        return self.prefill_s + self.decode_s

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second."""
        return self.generated_tokens / self.seconds

    @property
    def link_bytes_per_s(self) -> float | None:
        """Copied to the device in a second of decode, in the mean."""
        copied = self.decode_to_device_bytes
        return copied / self.decode_s if copied and self.decode_s else None

    def figures(self) -> Row:
        """Return what was reported, and what follows from it."""
        return {**asdict(self), **{name: getattr(self, name) for name in DERIVED}}


@dataclass(frozen=True, kw_only=True)
class GpuRow:
    """A trial and its outcome, if it came to one."""

    stage: str
    system: str
    setting: str
    model: str
    requests: int
    prompt_len: int
    new_tokens: int
    cap_bytes: int
    outcome: GpuOutcome | None = None
    problem: str = ""
    """Why there is no outcome."""

    unfinished: bool = False
    """Whether there might have been one with more time."""

    def flat(self) -> Row:
        """Return everything there is to know, the outcome's figures among it."""
        about = {name: value for name, value in vars(self).items() if name != "outcome"}
        return {**about, **(self.outcome.figures() if self.outcome else {})}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run."""

    stages: Sequence[str]
    models: Sequence[str]
    peers: Sequence[str]
    compressions: Sequence[str]
    """Of ours."""

    workload: Workload
    batch: int
    """Requests of ours in a throughput trial."""

    helm_model: str
    helm_share: float
    """Part of the paper's requests of each sub-scenario."""

    cap_bytes: int


class Session:
    """Runs one process after another, in the time there is.

    What each trial came to is in `ROWS_FILE` at once: who runs this may have less time than it.

    Args:
        tokenizer: of the dummy checkpoints.
        directory: for checkpoints, stores, logs and what trials came to.
        device: ``cuda``, or ``cpu`` to try the benchmark out.
        limit_s: time in all.
        announce: told what goes on.
    """

    def __init__(
        self, tokenizer: Path, directory: Path, *, device: str, limit_s: float, announce: Announce
    ) -> None:
        self._tokenizer, self._directory, self._device = tokenizer, directory, device
        self._announce = announce
        self._end_s = monotonic() + limit_s
        self._count = 0

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self._end_s - monotonic()

    def calibrate(self) -> Hardware:
        """Measure the card.

        Raises:
            CommandError: this failed, or took all the time.
        """
        self._announce("machine: rates of card, link and disk ...")
        return measure_rates(self._bench("125m"), device=self._device, limit_s=self.left_s)

    def run(self, trial: GpuTrial, hardware: Hardware) -> GpuRow:
        """Make a trial, if there is time."""
        row = self._run(trial, hardware)
        found = f"{row.outcome.tokens_per_s:.2f} token/s" if row.outcome else row.problem
        self._announce(f"{_about(trial)}: {found}")
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / ROWS_FILE).open("a") as rows:
            rows.write(json.dumps(row.flat()) + "\n")
        return row

    def _run(self, trial: GpuTrial, hardware: Hardware) -> GpuRow:
        row = GpuRow(
            stage=trial.stage,
            system=trial.system,
            setting=trial.setting,
            model=f"opt-{trial.model}",
            requests=sum(requests.count for requests in trial.requests),
            prompt_len=_mean([(r.prompt_len, r.count) for r in trial.requests]),
            new_tokens=_mean([(r.new_tokens, r.count) for r in trial.requests]),
            cap_bytes=trial.cap_bytes,
        )
        if self.left_s < ENOUGH_S:
            return replace(row, problem="no time was left", unfinished=True)
        self._announce(f"{_about(trial)} ... ({self.left_s:.0f} s left)")
        self._count += 1
        bench = self._bench(trial.model)
        request = {
            "trial": asdict(trial),
            "checkpoint": str(bench.checkpoint),
            "directory": str(bench.directory),
            "device": self._device,
            "hardware": hardware.to_json(),
        }
        module = "upstream" if trial.system == UPSTREAM else "gpu_process"
        try:
            answer = ask(
                f"flexgen_helm.bench.{module}",
                request,
                bench,
                name=f"gpu-{self._count:02}",
                limit_s=self.left_s,
            )
        except CommandError as error:
            late = isinstance(error, CommandTimeoutError)
            return replace(row, problem=str(error), unfinished=late)
        if answer is None:
            return replace(row, problem="was killed for want of memory")
        return replace(row, outcome=GpuOutcome(**answer))

    def _bench(self, model: str) -> Bench:
        return Bench.of_size(model, tokenizer=self._tokenizer, directory=self._directory)


def _about(trial: GpuTrial) -> str:
    return f"{trial.stage}: {trial.system} {trial.setting}, opt-{trial.model}"


def run_gpu_benchmark(
    plan: Plan, session: Session, hardware: Hardware, conditions: Mapping[str, Cell]
) -> Report:
    """Carry out a plan on a machine that was measured, and report it."""
    asked = trials(plan, host_bytes=hardware.host_bytes)
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
            "cap": format_bytes(plan.cap_bytes),
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


def trials(plan: Plan, *, host_bytes: int) -> Iterator[GpuTrial]:
    """Yield what a plan measures, what it is about most first, as the time may run out.

    Args:
        plan: what is wanted.
        host_bytes: memory of the host, in which upstream has its cache.
    """
    models = plan.models if THROUGHPUT in plan.stages else ()
    found = {model: _throughput_trials(plan, model, host_bytes) for model in models}
    for model in models[:1]:
        yield from found[model][OURS][:1] + found[model][UPSTREAM]
    if HELM in plan.stages:
        yield from _helm_trials(plan)
    for model in models[1:]:
        yield from found[model][OURS][:1] + found[model][UPSTREAM]
    for model in models:
        yield from found[model][OURS][1:] + found[model][ACCELERATE]


def _helm_trials(plan: Plan) -> Iterator[GpuTrial]:
    for setting, requests in (
        (SHARED, [*helm_requests(plan.helm_share)]),
        (PADDED, [*padded_requests(plan.helm_share)]),
    ):
        yield GpuTrial(
            stage=HELM,
            system=OURS,
            setting=setting,
            model=plan.helm_model,
            requests=requests,
            in_turn=setting == PADDED,
            compression=plan.compressions[0],
            cap_bytes=plan.cap_bytes,
        )


def _throughput_trials(plan: Plan, model: str, host_bytes: int) -> dict[str, list[GpuTrial]]:
    """Those of a model, by system."""

    def trial(system: str, setting: str, batch: int, **others: Any) -> GpuTrial:
        requests = Requests(
            name=str(plan.workload),
            count=batch,
            shared=0,
            least_own=plan.workload.prompt_len,
            most_own=plan.workload.prompt_len,
            new_tokens=plan.workload.new_tokens,
        )
        return GpuTrial(
            stage=THROUGHPUT,
            system=system,
            setting=setting,
            model=model,
            requests=[requests],
            cap_bytes=plan.cap_bytes,
            **others,
        )

    found: dict[str, list[GpuTrial]] = {
        OURS: [trial(OURS, label, plan.batch, compression=label) for label in plan.compressions],
        UPSTREAM: [],
        ACCELERATE: [],
    }
    if UPSTREAM in plan.peers:
        policies = published_policies(model, plan.workload, host_bytes=host_bytes)
        found[UPSTREAM] = [trial(UPSTREAM, p.name, p.batch, options=p.options) for p in policies]
    if ACCELERATE in plan.peers:
        found[ACCELERATE] = [trial(ACCELERATE, "weights on the host", ACCELERATE_BATCH)]
    return found


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


def _mean(pairs: Sequence[tuple[int, int]]) -> int:
    """Mean of values, weighted."""
    return round(sum(value * weight for value, weight in pairs) / sum(w for _, w in pairs))
