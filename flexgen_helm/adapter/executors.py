"""HELM's executor with a hook before and after."""

from __future__ import annotations

from collections.abc import Callable

from helm.benchmark.adaptation.scenario_state import ScenarioState
from helm.benchmark.executor import Executor

Hook = Callable[[ScenarioState], None]


class HookedExecutor(Executor):
    """HELM's executor, in every respect but the hooks."""

    def __init__(self, stock: Executor) -> None:
        # Not calling up: that would open HELM's clients and caches a second time.
        self.execution_spec = stock.execution_spec
        self.context = stock.context
        self.before: Hook = _do_nothing
        self.after: Hook = _do_nothing

    def execute(self, scenario_state: ScenarioState) -> ScenarioState:
        after = self.after  # `before` may let other runs, with hooks of their own, go first
        self.before(scenario_state)
        executed = super().execute(scenario_state)
        after(executed)
        return executed


def _do_nothing(scenario_state: ScenarioState) -> None:
    pass
