"""Suites run end to end through HELM, with made-up results."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from helm.benchmark import runner as helm_runner
from helm.benchmark.executor import ExecutorError
from helm.benchmark.runner import RunnerError
from helm.benchmark.scenarios.dyck_language_scenario import DyckLanguageScenario

from flexgen_helm.adapter import offline, runner
from flexgen_helm.adapter.backend import DEFAULT_BACKEND
from flexgen_helm.adapter.engine_process import ENGINE_PROCESS, RemoteEngine
from flexgen_helm.adapter.fake import SECONDS_PER_TOKEN, FakeEngine
from flexgen_helm.errors import DeploymentError, StagingError
from flexgen_helm.specs.run_record import RunRecord
from tests.adapter.suites import FLEXGEN, HELM_FILES, RECORD, read_runs, run_suite, runs_of

DYCK = "dyck_language:num_parenthesis_pairs={pairs},model={model}"
STOCK = None


def dyck(model, *pairs):
    return [DYCK.format(pairs=pairs_, model=model) for pairs_ in pairs]


def record_of(runs):
    [path] = runs.glob(f"*/{RECORD}")
    return path.read_text()


def test_all_requests_of_a_deployment_are_computed_together(tmp_path, deploy, watch):
    plain, quantized = deploy(), deploy("-w4")
    entries = [*dyck(plain, 3), *dyck(quantized, 3), *dyck(plain, 4)]
    runs = run_suite(tmp_path, entries)
    assert [len(batch) for batch in watch.batches] == [8, 4]
    assert [settings.compression for settings in watch.loaded] == ["none", "w4"]
    assert watch.closed == 2
    assert len(read_runs(runs)) == 3 * len(HELM_FILES)


def test_files_equal_those_of_the_stock_runner(tmp_path, deploy, watch):
    model = deploy("-w4-kv4")
    entries = [
        *dyck(model, 3),
        f"synthetic_reasoning:mode=variable_substitution,model={model}",
    ]
    ours = read_runs(run_suite(tmp_path / "ours", entries))
    batches = len(watch.batches)
    stock = read_runs(run_suite(tmp_path / "stock", entries, runner=STOCK))
    assert batches == 1
    assert len(watch.batches) > 2
    assert ours == stock
    assert len(ours) == 2 * len(HELM_FILES)


def test_a_rerun_computes_nothing_and_writes_the_same_record(tmp_path, deploy, watch):
    entries = dyck(deploy(), 3)
    runs = run_suite(tmp_path, entries)
    files, record = read_runs(runs), record_of(runs)
    run_suite(tmp_path, entries)
    assert len(watch.batches) == 1
    assert len(watch.loaded) == 1
    assert read_runs(runs) == files
    assert record_of(runs) == record


def test_the_record_sums_up_the_requests(tmp_path, deploy, watch):
    name = deploy("-w4")
    record = RunRecord.from_json(record_of(run_suite(tmp_path, dyck(name, 3))))
    [batch] = watch.batches
    assert record.engine.compression == "w4"
    assert record.requests == len(batch) == 4
    assert record.effective_batch == 4
    assert record.prompt_tokens == sum(len(request.prompt_token_ids) for request in batch)


def test_the_record_counts_the_cost_of_equal_requests_once(tmp_path, deploy, watch, monkeypatch):
    get_instances = DyckLanguageScenario.get_instances

    def equal_instances(self, path):
        instances = get_instances(self, path)
        return [replace(instance, input=instances[0].input) for instance in instances]

    monkeypatch.setattr(DyckLanguageScenario, "get_instances", equal_instances)
    record = RunRecord.from_json(record_of(run_suite(tmp_path, dyck(deploy(), 3))))
    [[request]] = watch.batches
    prompt_len = len(request.prompt_token_ids)
    assert record.requests == 4
    assert record.prompt_tokens == 4 * prompt_len
    assert record.computed_prompt_tokens == prompt_len
    assert record.prefill_s == pytest.approx(prompt_len * SECONDS_PER_TOKEN)


def test_equal_requests_are_computed_once(tmp_path, deploy, watch):
    model = deploy()
    entries = [*dyck(model, 3), *(f"{entry},num_train_trials=1" for entry in dyck(model, 3))]
    runs = run_suite(tmp_path, entries)
    assert [len(batch) for batch in watch.batches] == [4]
    states = [json.loads(path.read_text()) for path in sorted(runs.glob("*/scenario_state.json"))]
    cached = [[s["result"]["cached"] for s in state["request_states"]] for state in states]
    assert sorted(cached) == [[False] * 4, [True] * 4]


def test_a_killed_run_resumes_where_it_was(tmp_path, byte_checkpoint, deploy, watch):
    name = deploy()
    script = f"""
import os, signal
from pathlib import Path
from tests.adapter import backends, conftest, suites
deploy = conftest.deploy.__wrapped__(Path({str(tmp_path)!r}), Path({str(byte_checkpoint)!r}))
deploy()
def die(index):
    if index == 5:
        os.kill(os.getpid(), signal.SIGKILL)
backends.WATCH.on_result = die
suites.run_suite(Path({str(tmp_path / "killed")!r}), {dyck(name, 3, 4)!r})
"""
    process = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not list(runs_of(tmp_path / "killed").glob("*/stats.json"))

    resumed = read_runs(run_suite(tmp_path / "killed", dyck(name, 3, 4)))
    assert [len(batch) for batch in watch.batches] == [3]
    assert resumed == read_runs(run_suite(tmp_path / "uninterrupted", dyck(name, 3, 4)))


def test_a_broken_engine_fails_runs_with_unfinished_requests_only(tmp_path, deploy, watch):
    name = deploy()
    watch.fail_after = 6
    with pytest.raises(RunnerError, match=r"dyck_language_np=4") as failure:
        run_suite(tmp_path, dyck(name, 3, 4))
    assert "np=3" not in str(failure.value)
    assert [path.parent.name.split(":")[0] for path in runs_of(tmp_path).glob("*/stats.json")] == [
        "dyck_language_np=3"
    ]
    watch.fail_after = None
    run_suite(tmp_path, dyck(name, 3, 4))
    assert [len(batch) for batch in watch.batches] == [8, 2]


@pytest.mark.parametrize(("killed", "other"), [("none", "w4"), ("w4", "none")])
def test_a_killed_process_fails_the_runs_of_its_deployment_only(
    tmp_path, deploy, checkpoint, monkeypatch, killed, other
):
    generate = RemoteEngine.generate

    def generate_or_die(self, requests, **kwargs):
        if self.description.compression == killed:
            os.kill(ENGINE_PROCESS._child.process.pid, signal.SIGKILL)
        return generate(self, requests, **kwargs)

    monkeypatch.setattr(RemoteEngine, "generate", generate_or_die)
    settings = {"checkpoint": str(checkpoint), "backend": DEFAULT_BACKEND}
    names = {"none": deploy(**settings), "w4": deploy("-w4", **settings)}
    with pytest.raises(RunnerError, match=r'Failed runs: \["[^"]*"\]'):
        run_suite(tmp_path, [entry for name in names.values() for entry in dyck(name, 3)])
    [complete] = runs_of(tmp_path).glob("*/stats.json")
    assert complete.parent.name.endswith(names[other].replace("/", "_"))


def test_the_log_ends_with_the_reasons_of_failed_runs(tmp_path, deploy, watch, monkeypatch):
    said = []
    monkeypatch.setattr(runner, "hlog", said.append)
    watch.fail_after = 6
    with pytest.raises(RunnerError):
        run_suite(tmp_path, dyck(deploy(), 3, 4))
    assert re.fullmatch(
        "Failed run dyck_language_np=4:.*: RuntimeError: the engine broke", said[-1]
    )


def test_an_invalid_request_fails_its_run_only(tmp_path, deploy, watch, monkeypatch):
    name = deploy()
    longest = max_prompt_len(tmp_path / "first", dyck(name, 3), watch)
    monkeypatch.setattr(FakeEngine, "max_positions", longest)
    entries = [*dyck(name, 3), f"synthetic_reasoning:mode=variable_substitution,model={name}"]
    with pytest.raises(RunnerError, match=r'Failed runs: \["synthetic_reasoning[^,]*,[^,]*"\]'):
        run_suite(tmp_path, entries)
    assert [len(batch) for batch in watch.batches] == [4, 4]


def max_prompt_len(folder, entries, watch):
    run_suite(folder, entries)
    return max(len(request.prompt_token_ids) for request in watch.batches[-1])


def test_a_client_that_cannot_be_made_fails_its_runs_only(tmp_path, deploy, watch):
    bad, good = deploy("-w4", policy={"micro_batch_size": 0}), deploy()
    with pytest.raises(RunnerError, match=rf'Failed runs: \["[^"]*{bad.replace("/", "_")}"\]'):
        run_suite(tmp_path, [*dyck(bad, 3), *dyck(good, 3)])
    assert [len(batch) for batch in watch.batches] == [4]
    assert record_of(runs_of(tmp_path))


def test_exit_on_error_raises_the_first_error(tmp_path, deploy, watch):
    watch.fail_after = 0
    with pytest.raises(ExecutorError, match="RuntimeError: the engine broke"):
        run_suite(tmp_path, [*dyck(deploy(), 3), *dyck(deploy("-w4"), 3)], exit_on_error=True)
    assert len(watch.batches) == 1


def test_deployments_whose_runs_have_one_name_are_refused(tmp_path, byte_checkpoint):
    directories = [tmp_path / name / "final" / "opt" for name in ("one", "two")]
    for directory in directories:
        shutil.copytree(byte_checkpoint, directory)
    entries = [entry for directory in directories for entry in dyck(f"flexgen/{directory}", 3)]
    with pytest.raises(DeploymentError, match=r"one/final/opt' and '.*two/final/opt' .*--suite"):
        run_suite(tmp_path, entries)
    assert not list(runs_of(tmp_path).glob("dyck*"))


def test_nothing_is_loaded_or_asked_where_data_cannot_be_had(tmp_path, deploy, watch, monkeypatch):
    monkeypatch.setattr(offline, "_answers", lambda *_: False)
    name = deploy()
    entries = [*dyck(name, 3), f"gsm:model={name}"]
    with pytest.raises(StagingError, match="flexgen-helm stage gsm"):
        run_suite(tmp_path, entries)
    assert not watch.loaded
    assert not list(runs_of(tmp_path).glob("dyck*"))


def test_a_run_that_cannot_be_prepared_fails_alone(tmp_path, deploy, watch):
    name = deploy()
    entries = [f"dyck_language:num_parenthesis_pairs=0,model={name}", *dyck(name, 3)]
    with pytest.raises(RunnerError, match="np=0"):
        run_suite(tmp_path, entries)
    assert len(list(runs_of(tmp_path).glob("*/stats.json"))) == 1


def test_nobody_waits_for_an_engine_that_is_loaded_in_vain(tmp_path, deploy, watch, monkeypatch):
    loading, stopped = threading.Event(), threading.Event()
    waits, stop = [], ENGINE_PROCESS.stop

    def load():
        loading.set()
        waits.append(stopped.wait(10))

    def stop_loading():
        assert loading.wait(10)
        stop()
        stopped.set()

    watch.on_load = load
    monkeypatch.setattr(ENGINE_PROCESS, "stop", stop_loading)
    with pytest.raises(RunnerError, match="np=0"):
        run_suite(tmp_path, [f"dyck_language:num_parenthesis_pairs=0,model={deploy()}"])
    assert waits == [True]


def test_skip_completed_runs(tmp_path, deploy, watch):
    name = deploy()
    run_suite(tmp_path, dyck(name, 3))
    run_suite(tmp_path, dyck(name, 3, 4), skip_completed_runs=True)
    assert [len(batch) for batch in watch.batches] == [4, 4]


@pytest.mark.parametrize(
    "flags",
    [
        {"dry_run": True},
        {"skip_instances": True},
        {"cache_instances": True, "cache_instances_only": True},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_flags_that_compute_nothing(tmp_path, deploy, watch, flags):
    ours = read_runs(run_suite(tmp_path / "ours", dyck(deploy(), 3), **flags))
    stock = read_runs(run_suite(tmp_path / "stock", dyck(deploy(), 3), runner=STOCK, **flags))
    assert ours == stock
    assert not watch.batches
    assert not list(runs_of(tmp_path / "ours").glob(f"*/{RECORD}"))


def test_without_cache_everything_is_computed_again(tmp_path, deploy, watch):
    for _ in range(2):
        run_suite(tmp_path, dyck(deploy(), 3), disable_cache=True, num_threads=1)
    assert [len(batch) for batch in watch.batches] == [4, 4]
    assert not list(tmp_path.glob("prod_env/cache/*.sqlite"))


def count_instances(monkeypatch, *, extra=None):
    """Count how often instances are made; `extra` is called each time and put into the prompts."""
    made = []
    get_instances = DyckLanguageScenario.get_instances

    def counted(self, path):
        instances = get_instances(self, path)
        made.append(self.num_parenthesis_pairs)
        if extra is None:
            return instances
        text = extra()
        return [replace(i, input=replace(i.input, text=text + i.input.text)) for i in instances]

    monkeypatch.setattr(DyckLanguageScenario, "get_instances", counted)
    return made


def test_instances_are_made_once(tmp_path, deploy, watch, monkeypatch):
    made = count_instances(monkeypatch)
    run_suite(tmp_path, dyck(deploy(), 3, 4))
    assert made == [3, 4]
    assert [len(batch) for batch in watch.batches] == [8]


def test_runs_beyond_those_that_can_be_kept_are_made_twice(tmp_path, deploy, watch, monkeypatch):
    monkeypatch.setattr(runner, "MAX_PARKED", 1)
    made = count_instances(monkeypatch)
    name = deploy()
    ours = read_runs(run_suite(tmp_path / "ours", dyck(name, 3, 4, 2), exit_on_error=True))
    assert made == [3, 4, 2, 4, 2]
    assert [len(batch) for batch in watch.batches] == [12]
    assert ours == read_runs(run_suite(tmp_path / "stock", dyck(name, 3, 4, 2), runner=STOCK))


@pytest.mark.parametrize("scoring_draws", [False, True])
def test_runs_draw_the_random_numbers_of_the_stock_runner(
    tmp_path, deploy, watch, monkeypatch, scoring_draws
):
    made = count_instances(monkeypatch, extra=lambda: f"{random.random()} {np.random.random()} ")
    execute = helm_runner.AnnotationExecutor.execute

    def draw(self, state):
        if scoring_draws:
            random.random()
        return execute(self, state)

    monkeypatch.setattr(helm_runner.AnnotationExecutor, "execute", draw)

    def run(folder, **options):
        random.seed(5)
        np.random.seed(5)
        return read_runs(run_suite(tmp_path / folder, dyck(name, 3, 4, 2), **options))

    name = deploy()
    ours = run("ours")
    assert made == ([3, 4, 2, 4, 2] if scoring_draws else [3, 4, 2])
    assert ours == run("stock", runner=STOCK)


def test_what_wants_the_main_thread_gets_it(tmp_path, deploy, watch, monkeypatch):
    execute = helm_runner.AnnotationExecutor.execute

    def demand(self, state):
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # raises in any other thread
        return execute(self, state)

    monkeypatch.setattr(helm_runner.AnnotationExecutor, "execute", demand)
    runs = run_suite(tmp_path, dyck(deploy(), 3))
    assert len(read_runs(runs)) == len(HELM_FILES)
    assert len(watch.batches) == 1


def test_no_parked_run_outlives_the_suite(tmp_path, deploy, watch):
    threads = set(threading.enumerate())
    watch.fail_after = 0
    with pytest.raises(ExecutorError):
        run_suite(tmp_path, dyck(deploy(), 3, 4), exit_on_error=True)
    assert threads.issuperset(threading.enumerate())


def test_other_deployments_are_left_to_helm(tmp_path, watch):
    from helm.benchmark.config_registry import register_builtin_configs_from_helm_package

    register_builtin_configs_from_helm_package()
    runs = run_suite(tmp_path, dyck("simple/model1", 3))
    stock = run_suite(tmp_path / "stock", dyck("simple/model1", 3), runner=STOCK)
    assert read_runs(runs) == read_runs(stock)
    assert not list(runs.glob(f"*/{RECORD}"))


def test_the_current_run_is_known_to_helm_while_it_is_scored(tmp_path, deploy, watch, monkeypatch):
    seen = []
    execute = helm_runner.AnnotationExecutor.execute

    def spy(self, state):
        seen.append(helm_runner._get_current_run_spec_name())
        return execute(self, state)

    monkeypatch.setattr(helm_runner.AnnotationExecutor, "execute", spy)
    run_suite(tmp_path, dyck(deploy(), 3, 4))
    assert [name.split(":")[0] for name in seen] == ["dyck_language_np=3", "dyck_language_np=4"]


def test_the_runner_is_found_by_its_public_name():
    from helm.common.object_spec import get_class_by_name

    assert issubclass(get_class_by_name(FLEXGEN), helm_runner.Runner)
