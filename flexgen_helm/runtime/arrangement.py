"""What goes where: a policy, the memory it takes and, if it was planned, the time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from flexgen_helm.errors import HardwareError
from flexgen_helm.notices import FlexGenWarning
from flexgen_helm.planner.automatic import automatic_policy
from flexgen_helm.planner.memory import MemoryPlan, nearest_policy, plan_memory
from flexgen_helm.planner.plan import Plan, predict
from flexgen_helm.planner.rates import Rates
from flexgen_helm.planner.setup import Setup
from flexgen_helm.runtime.lengths import DEFAULT_WORKLOAD, group_of
from flexgen_helm.runtime.statistics import memory_bytes, usable_bytes
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.calibration import measured_profile, profile_path
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.placement import Tier
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest
from flexgen_helm.specs.shipped import typical_hardware
from flexgen_helm.specs.workload import Workload

ALL_TOKENS = 1 << 40
"""More than any KV cache holds."""


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """A policy and what comes of it."""

    policy: Policy
    memory: MemoryPlan
    plan: Plan | None = None
    """With its prediction; `None` for a policy that was given, or where nothing is offloaded."""


class Expected(NamedTuple):
    """What a request should cost; see `RequestStatistics`. `None` for what is not known."""

    predicted_prefill_s: float | None = None
    predicted_decode_s: float | None = None
    planned_memory_bytes: int | None = None


class Arranger:
    """Decides what goes where, within a budget.

    Args:
        setup: the model.
        budget: what may be used.
        device: what computes.
        dtype: compute dtype.
        offload_dir: on the disk that is used.
        hardware: rates of this machine; what was measured if `None`.
    """

    def __init__(
        self,
        setup: Setup,
        budget: MemoryBudget,
        device: torch.device,
        dtype: str,
        offload_dir: Path,
        hardware: Hardware | None = None,
    ) -> None:
        self._setup = setup
        self._budget = budget
        self._device = device
        self._dtype = dtype
        self._offload_dir = offload_dir
        self._given = hardware
        self._before_bytes = memory_bytes(device)

    def with_policy(self, policy: Policy, workload: Workload = DEFAULT_WORKLOAD) -> Arrangement:
        """Return that of a policy.

        Raises:
            BudgetError: it does not fit the budget.
        """
        memory = plan_memory(self._setup, policy, self._budget, workload)
        return Arrangement(policy=policy, memory=memory)

    def plan(self, workload: Workload) -> Arrangement:
        """Return one that is planned for a workload.

        Raises:
            InfeasibleError: no policy fits.
            PlanningError: the linear program could not be solved.
        """
        try:
            hardware = self._hardware()
        except HardwareError:  # neither calibrated nor installed with what to go by instead
            nearest = nearest_policy(self._setup, Policy(), self._budget, workload)
            return self.with_policy(nearest or Policy(), workload)
        policy, plan = automatic_policy(self._setup, hardware, self._budget, workload)
        return replace(self.with_policy(policy, workload), plan=plan)

    def expect(
        self, arrangement: Arrangement, workload: Workload
    ) -> Callable[[GenerationRequest], Expected]:
        """Return what says of each request of a workload what it should cost."""
        cached = arrangement.memory.cache_tokens
        planned = None
        if cached is not None:
            taken = arrangement.memory.bytes_on(self._memory, cached_tokens=cached)
            planned = self._before_bytes + round(taken)
        hardware = self._measured_here()
        if hardware is None:
            return lambda _: Expected(planned_memory_bytes=planned)
        found = predict(
            self._setup.spec,
            self._setup.compression,
            hardware,
            workload,
            arrangement.policy,
            cached_tokens=ALL_TOKENS if cached is None else cached,
        )
        by_name = {scenario.scenario: scenario for scenario in found.per_scenario}

        def expected(request: GenerationRequest) -> Expected:
            scenario = by_name[group_of(request)]
            share = request.sampling.num_completions / scenario.num_requests
            return Expected(scenario.prefill_s * share, scenario.decode_s * share, planned)

        return expected

    def few_rows(self, policy: Policy) -> int | None:
        """Rows of a pass up to which weights in memory should stay as they are stored.

        `None` where that was not measured.
        """
        hardware = self._measured_here()
        if hardware is None:
            return None
        return Rates(self._setup, hardware).few_rows(policy.micro_batch_size)

    @property
    def _memory(self) -> tuple[Tier, ...]:
        """What `peak_memory_bytes` is about."""
        return (Tier.DEVICE, Tier.HOST) if self._setup.unified else (Tier.DEVICE,)

    def _measured_here(self) -> Hardware | None:
        """Rates that were given or measured, if they are those of what computes, and its dtype."""
        hardware = self._given or _measured()
        computes_so = self._setup.unified, self._dtype
        if hardware is None or (hardware.unified, hardware.dtype) != computes_so:
            return None
        return hardware

    def _hardware(self) -> Hardware:
        """Rates as measured, and the memory there is now."""
        hardware = self._given or _known_hardware(self._device, self._dtype)
        return replace(
            hardware,
            unified=self._setup.unified,
            dtype=self._dtype,  # of another, rates may be wrong, but bytes are not
            **usable_bytes(self._device, self._offload_dir),
        )


def _known_hardware(device: torch.device, dtype: str) -> Hardware:
    measured, unified = _measured(), device.type != "cuda"
    if measured is None or measured.unified != unified:  # of the other of processor and GPU
        name = "" if unified else torch.cuda.get_device_name(device)
        return typical_hardware(unified=unified, dtype=dtype, device_name=name)
    return measured


def _measured() -> Hardware | None:
    """Return the profile of this machine, if it has been calibrated; a run can do without."""
    if not profile_path().is_file():
        return None
    try:
        return measured_profile()
    except HardwareError as error:
        warnings.warn(str(error), FlexGenWarning, stacklevel=2)
        return None
