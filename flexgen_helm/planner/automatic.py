"""The policy of who does not give one."""

from __future__ import annotations

from flexgen_helm.errors import BudgetError, InfeasibleError
from flexgen_helm.planner.memory import budget_of, nearest_policy, plan_memory
from flexgen_helm.planner.plan import Plan, plan
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
        tokens = plan_memory(setup, Policy(), budget).cache_tokens
    except BudgetError:
        return False
    wanted = max(
        lengths.num_requests * (lengths.own_len + lengths.new_tokens) if lengths.decodes else 1
        for lengths in workload
    )
    return tokens is None or tokens >= min(AMPLE_TOKENS, wanted)


def automatic_plan(
    setup: Setup, hardware: Hardware, budget: MemoryBudget, workload: Workload
) -> Plan:
    """Plan a workload for what may be used of a machine; see `plan`."""
    return plan(setup.spec, [setup.compression], hardware, workload, budget)


def automatic_policy(
    setup: Setup, hardware: Hardware, budget: MemoryBudget, workload: Workload
) -> tuple[Policy, Plan | None]:
    """Return a policy, and the plan it is from; none where nothing needs to be offloaded.

    Raises:
        InfeasibleError: no policy fits.
        PlanningError: the linear program could not be solved.
    """
    allowed = budget_of(setup, hardware, budget)
    if fits_as_it_is(setup, allowed, workload):
        return Policy(), None
    try:
        made = automatic_plan(setup, hardware, budget, workload)
    except ModuleNotFoundError as error:  # a machine with torch and little else
        if error.name != "cvxpy":
            raise
        policy = nearest_policy(setup, Policy(), allowed)
        if policy is None:
            raise InfeasibleError(
                "no policy of this model fits: allow more memory, or compress the model"
            ) from error
        return policy, None
    return made.policy, made
