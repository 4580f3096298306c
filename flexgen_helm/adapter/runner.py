"""A HELM runner that computes the requests of a whole suite together.

HELM's runner takes one run at a time from scenario to scores, so its clients see the requests of
one run, a few at a time. This one begins every run and parks it when its requests are known. They
are then computed, all those of a deployment at once. Then HELM goes through the suite as it always
does, except that a parked run is carried on from where it is: its requests find their answers
waiting.

HELM's code runs as it is. Where parking would show, the run is left to HELM from its beginning:
if it would begin with other random numbers at its turn than it did (metrics before it drew some),
if it fails (some code wants the main thread; and an error must be raised at the run's turn), if
there are too many to keep. Its answers are waiting all the same, and a request that nobody
foresaw is computed by the client as it is without this runner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from helm.benchmark import runner as helm_runner
from helm.benchmark.adaptation.scenario_state import ScenarioState
from helm.benchmark.model_deployment_registry import get_model_deployment
from helm.benchmark.run_spec import RunSpec
from helm.benchmark.runner import Runner, RunnerError
from helm.common.hierarchical_logger import hlog, htrack_block
from helm.common.local_context import LocalContext
from helm.common.object_spec import get_class_by_name
from helm.common.request import Request

from flexgen_helm.adapter.adapted_once import TaskMemory
from flexgen_helm.adapter.client import FlexGenClient
from flexgen_helm.adapter.early_imports import import_metrics
from flexgen_helm.adapter.engine_process import ENGINE_PROCESS
from flexgen_helm.adapter.engines import ENGINES
from flexgen_helm.adapter.executors import HookedExecutor
from flexgen_helm.adapter.failures import failure_text
from flexgen_helm.adapter.garbage import rare_collections
from flexgen_helm.adapter.needs import require_checkpoints, require_data
from flexgen_helm.adapter.parking import ParkableWork
from flexgen_helm.adapter.progress import SuiteProgress
from flexgen_helm.adapter.random_state import RandomState
from flexgen_helm.adapter.responses import Response
from flexgen_helm.adapter.run_files import write_run_record
from flexgen_helm.errors import DeploymentError

Suite = dict[str, list[Request]]
"""Requests by deployment, in the order in which HELM makes them."""

MAX_PARKED = 64
"""A parked run keeps its instances and prompts in memory, some 10 MB, and a thread."""


class FlexGenRunner(Runner):
    """HELM's runner with large batches; ``--runner-class-name flexgen_helm.FlexGenRunner``."""

    executor: HookedExecutor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.executor = HookedExecutor(self.executor)
        self._parked: dict[str, ParkableWork] = {}
        self._failures: list[str] = []

    def run_all(self, run_specs: list[RunSpec]) -> None:
        """Run all runs, as HELM does, after computing their requests.

        Raises:
            DeploymentError: two deployments would write the same files; nothing is run.
            StagingError: scenario data are missing, and cannot be downloaded; nothing is run.
            CheckpointError: likewise a checkpoint.
            RunnerError: some runs failed, the log ends with the reasons; the others are complete.
            Exception: with ``--exit-on-error``, what the first failing run raised.
        """
        _refuse_shared_names(run_specs)
        ours = [spec for spec in run_specs if is_ours(spec)]
        self._require_all(ours)
        if ours:
            ENGINE_PROCESS.start()  # it takes seconds; meanwhile:
        with rare_collections():
            executes = self._executes_here()
            with ThreadPoolExecutor(max_workers=1) as beside:
                if executes:
                    beside.submit(self._load_ahead, ours)
                import_metrics(run_specs)
            try:
                if executes:
                    self._prepare(self._gather(ours))
                super().run_all(run_specs)
            except RunnerError:
                for failure in self._failures:
                    hlog(failure)
                raise
            finally:
                self._abandon_parked()

    def run_one(self, run_spec: RunSpec) -> None:
        """Run one run, from where it is parked if it is."""
        parked = self._parked.pop(run_spec.name, None)
        try:
            if parked is None or not self._finish(run_spec, parked):
                self._run_from_start(run_spec)
        except Exception as error:
            self._failures.append(failure_text(run_spec.name, error))
            raise

    def _finish(self, run_spec: RunSpec, parked: ParkableWork) -> bool:
        """Carry a parked run on to its end; whether it got there."""
        # HELM set it when the run began, and the runs that began after it overwrote it.
        helm_runner._CURRENT_RUN_SPEC_NAME = run_spec.name
        if not (finished := parked.finish()):
            reason = parked.error or "other random numbers have been drawn since"
            hlog(f"Running {run_spec.name} from its start: {reason}")
        return finished

    def _run_from_start(self, run_spec: RunSpec) -> None:
        """Run one run as HELM does, and write what it cost beside HELM's files."""

        def write_record(scenario_state: ScenarioState) -> None:
            responses = self._responses(run_spec, scenario_state)
            # Before HELM's files, so that a run with all of those has this one too.
            if responses and not self.skip_instances:
                write_run_record(Path(self._get_run_path(run_spec)), responses)

        self.executor.after = write_record
        super().run_one(run_spec)

    def _require_all(self, run_specs: Sequence[RunSpec]) -> None:
        """Refuse to begin where something is missing that runs to be made need."""
        left = [
            spec
            for spec in run_specs
            if not (self.skip_completed_runs and self._is_run_completed(self._get_run_path(spec)))
        ]
        if not (self.skip_instances or self.cache_instances):  # which may be there without data
            require_data([spec.name for spec in left], Path(self.output_path))
        if self._executes_here():
            require_checkpoints([spec.adapter_spec.model_deployment for spec in left])

    def _executes_here(self) -> bool:
        """Whether any request will be made, and by this process rather than a proxy server."""
        skips = self.dry_run or self.skip_instances or self.cache_instances_only
        return not skips and isinstance(self.executor.context, LocalContext)

    def _load_ahead(self, run_specs: Sequence[RunSpec]) -> None:
        """Load the first engine while the requests for it are made."""
        if run_specs and not self.skip_completed_runs:
            # What fails here fails again, and is reported, when a request needs it.
            with suppress(Exception):
                self._client(run_specs[0].adapter_spec.model_deployment).load_ahead()

    def _gather(self, run_specs: Sequence[RunSpec]) -> Suite:
        """Begin runs of our deployments, and return their requests."""
        suite: Suite = {}
        start, stock = RandomState.current(), self.executor.before
        begun = list(_first_of_each_name(run_specs))
        tasks = TaskMemory(begun)
        try:
            for run_spec in begun:
                with tasks.run(run_spec):
                    complete = self._begin(run_spec, suite)
                if not complete and self.exit_on_error:
                    break
        finally:
            self.executor.before = stock
            start.restore()
        return suite

    def _begin(self, run_spec: RunSpec, suite: Suite) -> bool:
        """Run one run until its requests are known; whether it got that far."""

        def gather(scenario_state: ScenarioState) -> None:
            for state in scenario_state.request_states:
                suite.setdefault(state.request.model_deployment, []).append(state.request)
            run.park()

        run = ParkableWork(lambda: self._run_from_start(run_spec))
        self.executor.before = gather
        with htrack_block(f"Gathering the requests of {run_spec.name}"):
            run.begin()
        if run.error is not None:  # it will fail again, and be reported, when its turn comes
            hlog(f"No requests of {run_spec.name}: {run.error}")
        elif run.parked:
            self._keep(run_spec, run)
        return run.error is None

    def _keep(self, run_spec: RunSpec, run: ParkableWork) -> None:
        if len(self._parked) < MAX_PARKED:
            self._parked[run_spec.name] = run
        else:
            run.abandon()

    def _abandon_parked(self) -> None:
        while self._parked:
            self._parked.popitem()[1].abandon()

    def _prepare(self, suite: Suite) -> None:
        """Compute the requests of one deployment after the other."""
        with SuiteProgress({name: len(requests) for name, requests in suite.items()}) as progress:
            for deployment, requests in suite.items():
                with htrack_block(f"Computing the requests of {deployment}"):
                    complete = self._compute(deployment, requests, progress)
                if self.exit_on_error and not complete:
                    break
        # Metrics may bring models of their own, and want all of the memory. The process first: what
        # it loads ahead is waited for otherwise, even if nobody wants it any more.
        ENGINE_PROCESS.stop()
        ENGINES.close_engine()

    def _compute(
        self, deployment: str, requests: Sequence[Request], progress: SuiteProgress
    ) -> bool:
        """Compute the requests of a deployment; whether there is an answer to every one of them."""
        try:
            return self._client(deployment).prepare(requests, name=deployment, progress=progress)
        except Exception as error:  # it will fail again, and be reported, when a run's turn comes
            hlog(f"No answers of {deployment}: {error}")
            progress.begin(deployment, 0)
            return False

    def _responses(
        self, run_spec: RunSpec, scenario_state: ScenarioState
    ) -> list[tuple[Response, int]]:
        if not self._executes_here() or not is_ours(run_spec):
            return []
        requests = [state.request for state in scenario_state.request_states]
        return self._client(run_spec.adapter_spec.model_deployment).responses(requests)

    def _client(self, deployment: str) -> FlexGenClient:
        client = self.executor.context.client._get_client(deployment)
        assert isinstance(client, FlexGenClient)
        return client


def is_ours(run_spec: RunSpec) -> bool:
    """Whether the deployment of a run is served by our client."""
    try:
        deployment = get_model_deployment(run_spec.adapter_spec.model_deployment)
        client_class = get_class_by_name(deployment.client_spec.class_name)
    except Exception:  # unknown, or it needs a package that is not there: HELM will say so
        return False
    return issubclass(client_class, FlexGenClient)


def _refuse_shared_names(run_specs: Iterable[RunSpec]) -> None:
    """Refuse runs of two deployments that HELM, naming them by two parts, calls the same."""
    first: dict[str, str] = {}
    for run_spec in run_specs:
        deployment = run_spec.adapter_spec.model_deployment
        if (other := first.setdefault(run_spec.name, deployment)) != deployment:
            raise DeploymentError(
                f"runs of {other!r} and {deployment!r} would overwrite each other, for HELM calls"
                f" both {run_spec.name!r}: rename one of the checkpoints, or link to it, so that"
                " the last two parts differ, or run each in a suite of its own (--suite)"
            )


def _first_of_each_name(run_specs: Iterable[RunSpec]) -> Iterable[RunSpec]:
    """Leave out runs that write the same files as one before: HELM may skip them by then."""
    first: dict[str, RunSpec] = {}
    for run_spec in run_specs:
        first.setdefault(run_spec.name, run_spec)
    return first.values()
