"""The planner: what a model, a workload and a machine come to, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from flexgen_helm.errors import InfeasibleError
from flexgen_helm.planner.block_load import OURS, BlockLoad, Execution, Shape
from flexgen_helm.planner.costs import Phase, Resource, phases
from flexgen_helm.planner.linear import Fractions, fractions_of, total
from flexgen_helm.planner.memory import limits_of, needed_bytes
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression, kernels_attend
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.placement import Tier
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.workload import RequestLengths, Workload
from flexgen_helm.units import format_bytes, format_seconds

WORTH_SAYING = 0.01
"""A part of the time below which nothing is said about more memory."""


@dataclass(frozen=True, kw_only=True)
class ScenarioPlan:
    """What the requests of a scenario are predicted to take."""

    scenario: str
    num_requests: int
    prompt_tokens: float
    unique_tokens: float
    """Prompt tokens that are computed."""

    effective_batch: float
    """Requests of a block."""

    num_blocks: int
    prefill_s: float
    decode_s: float
    prefill_bound_by: str
    decode_bound_by: str

    @property
    def minutes(self) -> float:
        return (self.prefill_s + self.decode_s) / 60


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A policy, and what comes of it."""

    policy: Policy
    hardware: str
    """Name of the profile it is for."""

    compression: str
    predicted_s: float
    per_scenario: tuple[ScenarioPlan, ...]
    limits: tuple[str, ...]
    """What limits it, a sentence each."""

    needed_bytes: Mapping[str, float]
    """At most, by memory."""

    limit_bytes: Mapping[str, float]
    generated_tokens: int

    @property
    def throughput(self) -> float:
        """Generated tokens per second."""
        return self.generated_tokens / self.predicted_s

    @property
    def effective_batch(self) -> int:
        """Requests of the largest block."""
        return round(max(scenario.effective_batch for scenario in self.per_scenario))

    @property
    def offloads(self) -> bool:
        """Whether anything is not on the device."""
        return self.policy.offloads

    @property
    def summary(self) -> str:
        """What it comes to, line by line."""
        memory = ", ".join(
            f"{name} {format_bytes(needed)} of {format_bytes(self.limit_bytes[name])}"
            for name, needed in self.needed_bytes.items()
        )
        return "\n".join(
            [
                f"predicted for {self.hardware}: {format_seconds(self.predicted_s)},"
                f" {self.throughput:.3g} tokens/s, effective batch {self.effective_batch}",
                f"compression: {self.compression}",
                f"memory, at most: {memory}",
                *_policy_lines(self.policy),
                *self.limits,
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "predicted_hours": self.predicted_s / 3600,
            "predicted_tokens_per_s": self.throughput,
            "hardware": self.hardware,
            "compression": self.compression,
            "offloads": self.offloads,
            "policy": asdict(self.policy),
            "per_scenario": [
                {**asdict(scenario), "minutes": scenario.minutes} for scenario in self.per_scenario
            ],
            "limits": list(self.limits),
            "needed_bytes": dict(self.needed_bytes),
            "limit_bytes": dict(self.limit_bytes),
        }


def _policy_lines(policy: Policy) -> Iterator[str]:
    yield (
        f"micro-batches: {policy.num_micro_batches} of {policy.micro_batch_size} sequences, or of"
        f" {policy.micro_batch_tokens} prompt tokens; attention on the {policy.attention}"
    )
    for name, placement in policy.placements.items():
        parts = [
            f"{100 * placement.on(tier):.3g} % {tier.value}" for tier in Tier if placement.on(tier)
        ]
        yield f"{name}: {', '.join(parts)}"


def setup_for(spec: ModelSpec, compression: Compression, hardware: Hardware) -> Setup:
    """Return a model as a machine computes it."""
    return Setup(
        spec=spec,
        compression=compression,
        dtype_bytes=hardware.dtype_bytes,
        unified=hardware.unified,
        has_attention_kernel=not hardware.unified
        and kernels_attend(compression.cache_bits, compression.group_size, spec.head_size),
    )


def plan(
    spec: ModelSpec,
    compressions: Sequence[Compression],
    hardware: Hardware,
    workload: Workload,
    budget: MemoryBudget | None = None,
    execution: Execution = OURS,
) -> Plan:
    """Choose a policy, and of several compression settings the fastest; see `search`.

    Args:
        spec: the model.
        compressions: settings allowed, at least one.
        hardware: the machine.
        workload: what is to be run.
        budget: what may be used of the machine's memory; all of it if left out.
        execution: whose way of running it.

    Raises:
        InfeasibleError: no policy fits, with any of these settings.
        PlanningError: the linear program could not be solved.
    """
    from flexgen_helm.planner.search import search

    budget = budget or MemoryBudget()
    found, failure = [], None
    for compression in compressions:
        setup = setup_for(spec, compression, hardware)
        try:
            found.append(search(setup, hardware, workload, budget, execution))
        except InfeasibleError as error:
            failure = error
    if not found:
        assert failure is not None, "there is at least one setting"
        raise failure
    best = min(found, key=lambda one: one.solution.seconds)
    made = _assemble(best.setup, hardware, workload, budget, best.shape, best.policy, execution)
    saved = dict(zip(best.needed, best.solution.multipliers.memories, strict=True))
    return _with_limits(made, _memory_sentences(saved, best.solution.seconds))


def predict(
    spec: ModelSpec,
    compression: Compression,
    hardware: Hardware,
    workload: Workload,
    policy: Policy,
    *,
    cached_tokens: int,
    budget: MemoryBudget | None = None,
    execution: Execution = OURS,
) -> Plan:
    """Say what a policy comes to.

    Args:
        spec: the model.
        compression: of weights and KV cache.
        hardware: the machine.
        workload: what is to be run.
        policy: with which policy.
        cached_tokens: tokens there is room for in the KV cache.
        budget: what may be used of the machine's memory; all of it if left out.
        execution: whose way of running it.
    """
    setup = setup_for(spec, compression, hardware)
    shape = Shape.of(setup, policy, cached_tokens)
    return _assemble(setup, hardware, workload, budget or MemoryBudget(), shape, policy, execution)


def _assemble(
    setup: Setup,
    hardware: Hardware,
    workload: Workload,
    budget: MemoryBudget,
    shape: Shape,
    policy: Policy,
    execution: Execution,
) -> Plan:
    fractions = fractions_of(policy)
    scenarios: list[ScenarioPlan] = []
    sentences: list[str] = []
    for lengths in workload:
        parts = list(phases(setup, hardware, lengths, shape, execution))
        scenarios.append(_scenario_plan(lengths, shape, execution, parts, fractions))
        sentences.extend(_bound_sentence(phase, fractions) for phase in parts)
    seconds = [s.prefill_s + s.decode_s for s in scenarios]
    needed = needed_bytes(setup, shape, workload)
    made = Plan(
        policy=policy,
        hardware=hardware.name,
        compression=setup.compression.label,
        predicted_s=sum(seconds),
        per_scenario=tuple(scenarios),
        limits=tuple(sentences),
        needed_bytes={name: linear.at(fractions) for name, linear in needed.items()},
        limit_bytes=limits_of(setup, hardware, budget),
        generated_tokens=workload.generated_tokens,
    )
    if not made.offloads:
        return _with_limits(
            made, ["everything fits into the device's memory: nothing is offloaded"]
        )
    return made


def _scenario_plan(
    lengths: RequestLengths,
    shape: Shape,
    execution: Execution,
    parts: Sequence[Phase],
    fractions: Fractions,
) -> ScenarioPlan:
    load = BlockLoad.of(lengths, shape, execution)
    seconds = {phase.name: phase.seconds(fractions) for phase in parts}
    bound_by = {phase.name: _busiest(phase, fractions).value for phase in parts}
    return ScenarioPlan(
        scenario=lengths.name,
        num_requests=lengths.num_requests,
        prompt_tokens=lengths.prompt_tokens,
        unique_tokens=load.num_blocks * load.prompt_tokens,
        effective_batch=load.sequences,
        num_blocks=load.num_blocks,
        prefill_s=seconds["prefill"],
        decode_s=seconds.get("decode", 0.0),
        prefill_bound_by=bound_by["prefill"],
        decode_bound_by=bound_by.get("decode", ""),
    )


def _busiest(phase: Phase, fractions: Fractions) -> Resource:
    return max(phase.terms, key=lambda resource: total(phase.terms[resource]).at(fractions))


def _bound_sentence(phase: Phase, fractions: Fractions) -> str:
    resource = _busiest(phase, fractions)
    terms = {name: term.at(fractions) for name, term in phase.terms[resource].items()}
    whole = sum(terms.values())
    name, seconds = max(terms.items(), key=lambda item: item[1])
    share = round(100 * seconds / whole) if whole else 0
    return f"{phase.name} of {phase.scenario} is bound by {resource.value}, {share} % of it {name}"


def _memory_sentences(saved_s: Mapping[str, float], seconds: float) -> list[str]:
    return [
        f"1 GB more {name} memory would save {100 * saved / seconds:.1f} % of the time"
        for name, saved in saved_s.items()
        if saved > WORTH_SAYING * seconds
    ]


def _with_limits(made: Plan, sentences: Sequence[str]) -> Plan:
    return replace(made, limits=(*made.limits, *sentences))
