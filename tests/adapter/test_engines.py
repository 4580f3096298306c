import threading

import pytest

from flexgen_helm.adapter.backend import EngineSettings, Identity
from flexgen_helm.adapter.compute import ComputeJob, compute
from flexgen_helm.adapter.engine_process import ProcessBackend
from flexgen_helm.adapter.engines import EngineRegistry, EngineSlot, backend_of
from flexgen_helm.adapter.fake import FakeBackend
from flexgen_helm.adapter.prompts import EncodedPrompt
from flexgen_helm.adapter.runtime_backend import RuntimeBackend
from flexgen_helm.errors import EngineClosedError, InvalidCompressionError
from flexgen_helm.specs.request import GenerationRequest
from tests.adapter.backends import WATCHED, WatchedEngine


def settings(checkpoint="a", **fields):
    return EngineSettings(checkpoint=checkpoint, backend=WATCHED, **fields)


def job(*token_ids):
    prompt = EncodedPrompt(token_ids=token_ids, texts=())
    return ComputeJob(prompt=prompt, request=GenerationRequest(prompt_token_ids=token_ids))


def test_one_engine_stays_in_memory(watch):
    slot = EngineSlot()
    with slot.use(settings("a")) as first, slot.use(settings("a")) as again:
        assert first is again
    with slot.use(settings("b")):
        pass
    assert [loaded.checkpoint for loaded in watch.loaded] == ["a", "b"]
    assert watch.closed == 1
    with pytest.raises(EngineClosedError):
        first.generate([])


def test_an_engine_is_lent_to_one_thread_at_a_time(watch):
    slot = EngineSlot()
    entered = threading.Event()
    with slot.use(settings("a")):
        thread = threading.Thread(target=lambda: [entered.set() for _ in [*use_b(slot)]])
        thread.start()
        assert not entered.wait(0.05)
        assert watch.closed == 0
    thread.join()
    assert entered.is_set()
    assert watch.closed == 1


def use_b(slot):
    with slot.use(settings("b")) as engine:
        yield engine


def test_settings_have_one_service(watch):
    registry = EngineRegistry()
    assert registry.service(settings("a")) is registry.service(settings("a"))
    assert registry.service(settings("a")) is not registry.service(settings("b"))


def test_a_closed_engine_is_loaded_again_on_demand(watch):
    registry = EngineRegistry()
    service = registry.service(settings("a"))
    for _ in range(2):
        service.submit(job(1, 2)).result()
        registry.close_engine()
    assert len(watch.loaded) == 2


def test_an_engine_that_is_gone_is_loaded_again(watch, monkeypatch):
    def fail(self, *args, **kwargs):
        raise EngineClosedError("the process was killed")

    service = EngineRegistry().service(settings("a"))
    with monkeypatch.context() as gone:
        gone.setattr(WatchedEngine, "generate", fail)
        with pytest.raises(EngineClosedError, match="the process was killed"):
            service.submit(job(1)).result()
    assert service.submit(job(1)).result()
    assert len(watch.loaded) == 2


def test_an_engine_that_cannot_be_closed_stands_in_nobodys_way(watch):
    slot = EngineSlot()
    watch.fail_close = OSError("no space left")
    for checkpoint in ("a", "b"):
        with slot.use(settings(checkpoint)):
            pass
    slot.close()
    assert watch.closed == 2


def test_an_identity_is_known_without_loading(watch):
    identity = EngineRegistry().service(settings("a", compression="w4-kv4")).identity
    assert identity == FakeBackend().identify(settings("a", compression="w4-kv4"))
    assert isinstance(identity, Identity)
    assert not watch.loaded


def test_a_failed_identity_is_not_tried_again(monkeypatch):
    tries = []

    def identify(self, settings):
        tries.append(settings)
        raise InvalidCompressionError("weight_bits=9")

    monkeypatch.setattr(FakeBackend, "identify", identify)
    service = EngineRegistry().service(settings("a"))
    for _ in range(2):
        with pytest.raises(InvalidCompressionError, match="weight_bits=9"):
            _ = service.identity
    assert len(tries) == 1


def test_every_job_has_one_outcome(watch):
    watch.fail_after = 2
    outcomes = []
    registry = EngineRegistry()
    compute(
        registry.service(settings("a")).engine,
        [job(*range(3000)), job(1), job(2), job(3)],
        lambda index, outcome: outcomes.append((index, type(outcome).__name__)),
    )
    assert outcomes == [
        (0, "InvalidRequestError"),
        (1, "dict"),
        (2, "RuntimeError"),
        (3, "RuntimeError"),
    ]


def test_the_default_backend_runs_models():
    assert isinstance(backend_of(EngineSettings(checkpoint="a")), ProcessBackend)


def test_the_runtime_backend_loads_the_engine(checkpoint):
    runtime = EngineSettings(checkpoint=str(checkpoint), compression="w4", dtype="float32")
    identity = RuntimeBackend().identify(runtime)
    engine = RuntimeBackend().load(runtime)
    try:
        assert engine.description.fingerprint == identity.fingerprint
        assert engine.description.compression == identity.compression == "w4"
        assert engine.description.dtype == identity.dtype == "float32"
        [result] = engine.generate([GenerationRequest(prompt_token_ids=(2, 5))])
        assert result.completions
    finally:
        engine.close()
