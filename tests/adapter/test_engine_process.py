"""The process that computes, on a real engine."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flexgen_helm.adapter.backend import EngineSettings
from flexgen_helm.adapter.engine_process import (
    ENGINE_PROCESS,
    EngineProcess,
    ProcessBackend,
    RemoteEngine,
    wants_engine,
)
from flexgen_helm.adapter.runtime_backend import RuntimeBackend
from flexgen_helm.errors import CheckpointError, EngineClosedError, InvalidRequestError
from flexgen_helm.specs.request import GenerationRequest

REQUESTS = [GenerationRequest(prompt_token_ids=(2, 5, 9)), GenerationRequest(prompt_token_ids=(2,))]


@pytest.fixture
def process():
    yield ENGINE_PROCESS
    ENGINE_PROCESS.stop()


@pytest.fixture
def settings(checkpoint):
    return EngineSettings(checkpoint=str(checkpoint), dtype="float32")


def pid_of(process):
    process.start()
    return process._child.process.pid


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_are_those_of_an_engine_here(process, settings):
    there, here = ProcessBackend(), RuntimeBackend()
    assert there.identify(settings) == here.identify(settings)
    remote, local = there.load(settings), here.load(settings)
    assert remote.description == local.description
    seen = []
    results = remote.generate(REQUESTS, on_result=lambda *known: seen.append(known))
    expected = local.generate(REQUESTS)
    assert [r.completions for r in results] == [r.completions for r in expected]
    assert sorted(index for index, _ in seen) == [0, 1]
    assert all(results[index] is result for index, result in seen)
    remote.close()
    local.close()
    with pytest.raises(EngineClosedError, match="load the engine again"):
        remote.generate(REQUESTS)


def test_errors_are_those_of_the_engine(process, settings):
    engine = ProcessBackend().load(settings)
    too_long = GenerationRequest(prompt_token_ids=(2,) * 300)
    with pytest.raises(InvalidRequestError, match="prompt has 300 tokens"):
        engine.generate([too_long])
    refused = []
    results = engine.generate([too_long, *REQUESTS], on_error=lambda *e: refused.append(e))
    assert len(results) == len(REQUESTS)
    [(index, error)] = refused
    assert index == 0
    assert "prompt has 300 tokens" in str(error)
    with pytest.raises(CheckpointError, match="nothing"):
        ProcessBackend().identify(EngineSettings(checkpoint="./nothing"))
    with pytest.raises(AttributeError) as failure:
        process.call("no_such_method")
    assert "engine_server.py" in str(failure.value.__cause__)


class OfAnotherModule(str):
    """What the other process cannot make, which does not know of that module."""

    __slots__ = ()


OfAnotherModule.__module__ = __name__ + "_that_is_only_here"


def test_what_cannot_be_sent_is_an_error(process, settings, monkeypatch):
    """And nobody waits for it."""
    monkeypatch.setitem(sys.modules, OfAnotherModule.__module__, sys.modules[__name__])
    RemoteEngine(process, settings)
    with ThreadPoolExecutor(1) as thread:
        for call in [("_compute", print), ("describe_tokenizer", OfAnotherModule("x"), {})]:
            answer = thread.submit(process.call, *call)
            try:
                with pytest.raises(Exception, match="cannot pickle|No module named"):
                    answer.result(timeout=60)
            finally:
                if not answer.done():
                    process.stop()
    assert RemoteEngine(process, settings).generate(REQUESTS)


def test_loading_can_begin_beside_other_calls(process, settings):
    there = ProcessBackend()
    there.begin_load(settings)
    assert there.identify(settings) == RuntimeBackend().identify(settings)
    engine = there.load(settings)
    assert engine.generate(REQUESTS)
    engine.close()


def test_what_was_begun_in_vain_is_given_up(process, settings):
    there = ProcessBackend()
    there.begin_load(EngineSettings(checkpoint="./nothing"))
    there.begin_load(dataclasses.replace(settings, compression="w4"))
    assert there.load(settings).description.compression == "none"


def test_what_fails_from_its_beginning_fails_when_it_is_loaded(process):
    missing = EngineSettings(checkpoint="./nothing")
    ProcessBackend().begin_load(missing)
    with pytest.raises(CheckpointError, match="nothing"):
        ProcessBackend().load(missing)


def test_a_killed_process_is_reported_and_started_again(process, settings):
    engine = ProcessBackend().load(settings)
    os.kill(pid_of(process), signal.SIGKILL)
    with pytest.raises(EngineClosedError, match="ended with status -9"):
        engine.generate(REQUESTS)
    assert ProcessBackend().load(settings).generate(REQUESTS)


def test_closing_an_engine_that_is_gone_starts_no_process(process, settings):
    engine = ProcessBackend().load(settings)
    os.kill(pid_of(process), signal.SIGKILL)
    for _ in range(2):
        engine.close()
        assert not process.started


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_and_a_result_that_cannot_be_kept_end_it(process, settings, error):
    def fail(index, result):
        raise error

    engine = ProcessBackend().load(settings)
    pid = pid_of(process)
    with pytest.raises(error):
        engine.generate(REQUESTS, on_result=fail)
    assert not is_running(pid)
    assert ProcessBackend().load(settings).generate(REQUESTS)


def test_it_is_stopped_whatever_it_does(process, settings):
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(process.identify, settings)  # answered when torch is imported
        while not process.started:
            time.sleep(0.01)
        process.stop()
        with pytest.raises(EngineClosedError, match="ended with status -9"):
            call.result()


def test_starting_and_stopping_twice_changes_nothing():
    process = EngineProcess()
    process.stop()
    first = pid_of(process)
    assert pid_of(process) == first
    process.stop()
    process.stop()
    assert not is_running(first)


def test_it_ends_with_its_parent_however_that_dies():
    script = """
import os, signal
from flexgen_helm.adapter.engine_process import ENGINE_PROCESS
ENGINE_PROCESS.start()
print(ENGINE_PROCESS._child.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    pid = int(parent.stdout)
    deadline = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--runner-class-name", "flexgen_helm.FlexGenRunner"], True),
        (["--runner-class-name=flexgen_helm.FlexGenRunner", "-r", "a"], True),
        (["--runner-class-name=flexgen_helm.FlexGenRunner", "--help"], False),
        (["--runner-class-name", "x.Y"], False),
        ([], False),
    ],
)
def test_runs_of_ours_want_an_engine(arguments, expected):
    assert wants_engine(["helm-run", *arguments]) is expected


def test_helm_is_not_imported_there_nor_torch_here():
    script = """
import sys
import flexgen_helm.adapter.{module}
print(*sys.modules)
"""
    for module, banned in (("engine_server", "helm"), ("client", "torch")):
        command = [sys.executable, "-c", script.format(module=module)]
        imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert banned not in imported.split()


def test_a_remote_engine_is_loaded_there(process, settings):
    assert RemoteEngine(process, settings).description.device == "cpu"
