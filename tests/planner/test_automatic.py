from dataclasses import replace

import pytest

from flexgen_helm.errors import BudgetError, InfeasibleError
from flexgen_helm.planner import automatic
from flexgen_helm.planner.automatic import automatic_policy, fits_as_it_is
from flexgen_helm.planner.memory import nearest_policy
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.policy import Policy
from tests.planner.machines import CPU, lengths, setup_of, workload

ROOMY = replace(CPU, device_bytes=10**10)
TIGHT = MemoryBudget(device=600 * 10**6)


def test_what_fits_is_left_alone():
    assert automatic_policy(setup_of(CPU), ROOMY, MemoryBudget(), workload()) == (Policy(), None)


def test_what_does_not_is_planned():
    policy, made = automatic_policy(setup_of(CPU), ROOMY, TIGHT, workload())
    assert made is not None
    assert policy == made.policy != Policy()
    assert made.needed_bytes["device"] <= 600 * 10**6


def test_a_cache_that_is_too_small_does_not_fit():
    """What fits 5,000 tokens is enough for requests of one token, and for few, but not for many."""
    setup, budget = setup_of(CPU), MemoryBudget(device=10**9)
    assert fits_as_it_is(setup, budget, workload(lengths(new_tokens=1)))
    assert fits_as_it_is(setup, budget, workload(lengths(num_requests=2)))
    assert not fits_as_it_is(setup, budget, workload(lengths(num_requests=10_000)))


@pytest.fixture
def no_solver(monkeypatch):
    def without(*_, **__):
        raise ModuleNotFoundError("No module named 'cvxpy'", name="cvxpy")

    monkeypatch.setattr(automatic, "plan_apart", without)


@pytest.mark.usefixtures("no_solver")
def test_without_a_solver_the_nearest_policy_is_taken():
    policy, made = automatic_policy(setup_of(CPU), ROOMY, TIGHT, workload())
    assert made is None
    assert policy == nearest_policy(
        setup_of(CPU), Policy(), MemoryBudget(device=TIGHT.device, disk=CPU.disk_bytes)
    )


def test_another_module_that_is_missing_is_an_error(monkeypatch):
    def without(*_, **__):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(automatic, "plan_apart", without)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        automatic_policy(setup_of(CPU), ROOMY, TIGHT, workload())


def test_what_can_never_fit_is_said():
    with pytest.raises(InfeasibleError, match="no policy.*fits: there is device memory of 10 MB"):
        automatic_policy(setup_of(CPU), ROOMY, MemoryBudget(device=10**7), workload())


@pytest.mark.usefixtures("no_solver")
def test_without_a_solver_it_is_said_as_well():
    with pytest.raises(BudgetError, match="MB.*no policy of this model fits: allow more"):
        automatic_policy(setup_of(CPU), ROOMY, MemoryBudget(device=10**7), workload())
