import pytest

from flexgen_helm.errors import InfeasibleError, PlanningError
from flexgen_helm.planner import process
from flexgen_helm.planner.plan import plan
from flexgen_helm.planner.process import plan_apart
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from tests.planner.machines import CPU, SMALL, workload

TIGHT = MemoryBudget(device=600 * 10**6)


def test_a_plan_is_that_of_this_process():
    asked = SMALL, [Compression()], CPU, workload(), TIGHT
    assert plan_apart(*asked) == plan(*asked)


def test_errors_are_those_of_planning():
    with pytest.raises(InfeasibleError, match="no policy of this model fits: there is"):
        plan_apart(SMALL, [Compression()], CPU, workload(), MemoryBudget(device=10**7))


def test_a_module_that_is_missing_is_named(monkeypatch, tmp_path):
    (tmp_path / "cvxpy.py").write_text("raise ModuleNotFoundError('gone', name='cvxpy')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as missing:
        plan_apart(SMALL, [Compression()], CPU, workload(), TIGHT)
    assert missing.value.name == "cvxpy"


def test_a_process_that_ends_is_an_error(monkeypatch):
    monkeypatch.setattr(process, "__name__", "no_such_module")
    with pytest.raises(PlanningError, match="ended with status 1"):
        plan_apart(SMALL, [Compression()], CPU, workload(), TIGHT)
