"""Instances and prompts of a task are made once, however many settings of a model are asked.

HELM makes them anew for every run, although runs of one task differ only in what answers. Here a
run that comes after another of its task, and begins with the same random numbers, gets what that
one has made, and the random numbers stand where they would. The first run of a suite begins with
others than those after it, so its instances may be made a second time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from helm.benchmark import runner as helm_runner
from helm.benchmark.adaptation.adapter_spec import AdapterSpec
from helm.benchmark.adaptation.adapters.adapter import Adapter
from helm.benchmark.adaptation.request_state import RequestState
from helm.benchmark.model_deployment_registry import get_model_deployment
from helm.benchmark.run_spec import RunSpec
from helm.benchmark.scenarios.scenario import Instance, Scenario

from flexgen_helm.adapter.random_state import RandomState


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What a step has made, and between which random numbers."""

    value: Any
    before: RandomState
    after: RandomState


class TaskMemory:
    """What runs of the same task have in common, kept until the last of them has had it."""

    def __init__(self, run_specs: Sequence[RunSpec]) -> None:
        self._left = Counter(map(_task, run_specs))
        self._made: defaultdict[str, dict[str, _Made]] = defaultdict(dict)
        self._task = ""

    @contextmanager
    def run(self, run_spec: RunSpec) -> Iterator[None]:
        """Have HELM's steps, as long as this lasts, be those of a run."""
        stock = {name: getattr(helm_runner, name) for name in _HOOKED}
        self._task = _task(run_spec)
        hooks = {
            "create_scenario": self._scenario(stock["create_scenario"]),
            "DataPreprocessor": self._preprocessor(stock["DataPreprocessor"]),
            "AdapterFactory": self._adapters(stock["AdapterFactory"]),
        }
        _set(hooks)
        try:
            yield
        finally:
            _set(stock)
            self._left[self._task] -= 1
            if not self._left[self._task]:
                self._made.pop(self._task, None)

    def _make(self, step: str, make: Callable[[], Any]) -> Any:
        """Return what a step makes, or has made for a run before with the same random numbers."""
        before = RandomState.current()
        known = self._made[self._task].get(step)
        if known is not None and known.before == before:
            known.after.restore()
            return known.value
        value = make()
        if self._left[self._task] > 1:
            made = _Made(value=value, before=before, after=RandomState.current())
            self._made[self._task][step] = made
        return value

    def _scenario(self, create: Callable[[Any], Scenario]) -> Callable[[Any], Scenario]:
        def hooked(spec: Any) -> Scenario:
            scenario: Scenario = self._make("scenario", lambda: create(spec))
            make_instances = type(scenario).get_instances

            def get_instances(path: str) -> list[Instance]:
                instances: list[Instance] = self._make(
                    "instances", lambda: make_instances(scenario, path)
                )
                return instances

            scenario.get_instances = get_instances
            return scenario

        return hooked

    def _preprocessor(self, stock: type) -> type:
        memory = self

        class Preprocessor(stock):
            """Perturbs the instances of a task once."""

            def preprocess(self, instances: list[Instance], parallelism: int = 1) -> list[Instance]:
                perturb = super().preprocess
                made: list[Instance] = memory._make(
                    "preprocessed", lambda: perturb(instances, parallelism)
                )
                return made

        return Preprocessor

    def _adapters(self, stock: Any) -> type:
        memory = self

        class Factory:
            """Makes adapters that make the prompts of a task once."""

            @staticmethod
            def get_adapter(spec: AdapterSpec, service: Any) -> Adapter:
                adapter: Adapter = stock.get_adapter(spec, service)
                adapt = adapter.adapt

                def adapt_once(instances: list[Instance], parallelism: int) -> list[RequestState]:
                    states = memory._make("adapted", lambda: adapt(instances, parallelism))
                    return [_asked_of(spec, state) for state in states]

                adapter.adapt = adapt_once
                return adapter

        return Factory


_HOOKED = ("create_scenario", "DataPreprocessor", "AdapterFactory")
"""Names by which HELM's runner knows the makers of instances and prompts."""


def _set(hooks: dict[str, Any]) -> None:
    for name, hook in hooks.items():
        setattr(helm_runner, name, hook)


def _asked_of(spec: AdapterSpec, state: RequestState) -> RequestState:
    """Return a request to the deployment of a run."""
    request = state.request
    if (request.model, request.model_deployment) == (spec.model, spec.model_deployment):
        return state
    request = replace(request, model=spec.model, model_deployment=spec.model_deployment)
    return replace(state, request=request)


def _task(run_spec: RunSpec) -> str:
    """All that instances and prompts depend on: the same text means the same prompts."""
    adapter = replace(run_spec.adapter_spec, model="", model_deployment="")
    deployment = get_model_deployment(run_spec.adapter_spec.model_deployment)
    window = (
        deployment.tokenizer_name,
        deployment.window_service_spec,
        deployment.max_sequence_length,
        deployment.max_request_length,
        deployment.max_sequence_and_generated_tokens_length,
    )
    return repr((run_spec.scenario_spec, run_spec.data_augmenter_spec, adapter, window))
