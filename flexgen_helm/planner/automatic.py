"""The policy of who does not give one."""

from __future__ import annotations

from flexgen_helm.errors import BudgetError, InfeasibleError
from flexgen_helm.planner.memory import budget_of, nearest_policy, plan_memory
from flexgen_helm.planner.plan import Plan
from flexgen_helm.planner.process import plan_apart
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.workload import Workload

AMPLE_TOKENS = 16_384
"""Tokens in the KV cache beyond which a model that is all in memory gains little from more."""


def fits_as_it_is(setup: Setup, budget: MemoryBudget, workload: Workload) -> bool:
    """Whether everything can be on the device, with room for a cache worth having.

    Offloading is of no use then, and nothing needs to be worked out.
    """
    try:
        tokens = plan_memory(setup, Policy(), budget, workload).cache_tokens
    except BudgetError:
        return False
    wanted = max(
        lengths.num_requests * lengths.final_len if lengths.decodes else 1 for lengths in workload
    )
    return tokens is None or tokens >= min(AMPLE_TOKENS, wanted)


def automatic_policy(
    setup: Setup, hardware: Hardware, budget: MemoryBudget, workload: Workload
) -> tuple[Policy, Plan | None]:
    """Return a policy, and the plan it is from; none where nothing needs to be offloaded.

    Where the planner finds none, or is not installed, the one nearest to having everything on the
    device is taken.

    Raises:
        BudgetError: no policy fits.
        PlanningError: the linear program could not be solved.
    """
    allowed = budget_of(setup, hardware, budget)
    if fits_as_it_is(setup, allowed, workload):
        return Policy(), None
    try:
        made = plan_apart(setup.spec, [setup.compression], hardware, workload, budget)
    except (InfeasibleError, ModuleNotFoundError) as error:
        # The planner leaves some memory free, as it does not know yet which matrix goes where; and
        # a machine with torch and little else has no cvxpy.
        if isinstance(error, ModuleNotFoundError) and error.name != "cvxpy":
            raise
        nearest = nearest_policy(setup, Policy(), allowed, workload)
        if nearest is not None:
            return nearest, None
        if isinstance(error, ModuleNotFoundError):
            plan_memory(setup, Policy(), allowed)  # refuses, and says how much is missing
        raise
    return made.policy, made
