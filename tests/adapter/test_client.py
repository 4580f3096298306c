import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helm.common.request import Request

from flexgen_helm.adapter import client as client_module
from flexgen_helm.adapter.backend import DEFAULT_BACKEND
from flexgen_helm.adapter.engines import ENGINES, EngineRegistry
from flexgen_helm.adapter.progress import SuiteProgress
from flexgen_helm.adapter.tokenizer import FlexGenTokenizer
from flexgen_helm.errors import CheckpointError, InvalidSettingError
from tests.conftest import byte_tokenizer

pytestmark = pytest.mark.usefixtures("watch")


def requests(count, **fields):
    return [Request(prompt=f"prompt {index}", max_tokens=3, **fields) for index in range(count)]


def prepare(client, requests):
    with SuiteProgress({"test": len(requests)}) as progress:
        return client.prepare(requests, name="test", progress=progress)


def test_concurrent_requests_are_computed_together(make_client, watch):
    client = make_client()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(client.make_request, requests(8)))
    assert all(result.success and not result.cached for result in results)
    assert sum(map(len, watch.batches)) == 8
    assert len(watch.batches) < 8
    assert len(watch.loaded) == 1


def test_a_second_request_is_answered_from_the_cache(make_client, watch):
    [request] = requests(1)
    first = make_client().make_request(request)
    second = make_client().make_request(request)
    assert (first.cached, second.cached) == (False, True)
    assert first.completions == second.completions
    assert len(watch.batches) == 1


def test_a_cached_answer_loads_no_engine(make_client, watch):
    [request] = requests(1)
    make_client().make_request(request)
    watch.loaded.clear()
    assert make_client(device="cuda", policy={"num_micro_batches": 8}).make_request(request).cached
    assert not watch.loaded


def test_answers_to_other_tokens_are_other_answers(make_client, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["prompt"])
    tokenizer.save_pretrained(tmp_path)
    other = FlexGenTokenizer("other", str(tmp_path))
    [request] = requests(1)
    for settings in ({}, {"tokenizer": other}, {"end_of_text_token": "<s>"}):
        assert not make_client(**settings).make_request(request).cached
        assert make_client(**settings).make_request(request).cached


def loads_soon(watch):
    """Whether an engine is loaded; loading ahead takes place in another thread."""
    deadline_s = time.monotonic() + 5
    while not watch.loaded and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return bool(watch.loaded)


def test_an_engine_is_loaded_ahead_while_nothing_can_be_cached(make_client, watch):
    client = make_client()
    client.load_ahead()
    assert loads_soon(watch)
    assert not client.make_request(requests(1)[0]).cached
    assert len(watch.loaded) == 1


def test_no_engine_is_loaded_ahead_where_answers_may_be_cached(make_client, watch):
    make_client().make_request(requests(1)[0])
    ENGINES.close_engine()
    watch.loaded.clear()
    client = make_client()
    client.load_ahead()
    assert client.make_request(requests(1)[0]).cached
    assert not watch.loaded


def test_what_fails_ahead_fails_again_when_it_is_needed(make_client, watch):
    watch.fail_load = CheckpointError("weights are missing")
    client = make_client()
    client.load_ahead()
    assert "weights are missing" in client.make_request(requests(1)[0]).error


def test_clients_of_one_deployment_share_an_engine(make_client, watch):
    clients = [make_client() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda pair: pair[0].make_request(pair[1]), zip(clients, requests(4), strict=True)
            )
        )
    assert len(watch.loaded) == 1


def test_deployments_take_turns_in_memory(make_client, watch):
    plain, quantized = make_client(), make_client(compression="w4")
    [request] = requests(1)
    assert not plain.make_request(request).cached
    assert not quantized.make_request(request).cached
    assert [settings.compression for settings in watch.loaded] == ["none", "w4"]
    assert watch.closed >= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding": True}, "embedding=True is not supported"),
        ({"top_p": 7}, "top_p=7.0 is out of range"),
        ({"prompt": "a" * 3000}, "prompt has 3001 tokens, the model has 2048 positions"),
    ],
)
def test_a_users_mistake_is_a_failure_that_is_not_retried(make_client, fields, message):
    result = make_client().make_request(Request(**fields))
    assert not result.success
    assert message in result.error
    assert result.error_flags.is_retriable is False


def test_one_invalid_request_fails_alone(make_client):
    client = make_client()
    with ThreadPoolExecutor(4) as pool:
        mixed = [*requests(3), Request(prompt="a" * 3000)]
        results = list(pool.map(client.make_request, mixed))
    assert [result.success for result in results] == [True, True, True, False]


def test_an_unexpected_error_is_named_and_not_retried(make_client, watch):
    watch.fail_after = 0
    result = make_client().make_request(requests(1)[0])
    assert result.error == "RuntimeError: the engine broke"
    assert result.error_flags.is_retriable is False


def test_a_checkpoint_that_cannot_be_loaded(make_client, watch):
    watch.fail_load = CheckpointError("shard 3 is missing: fetch the checkpoint again")
    result = make_client().make_request(requests(1)[0])
    assert result.error == "shard 3 is missing: fetch the checkpoint again"


def test_a_checkpoint_that_does_not_exist(make_client, tmp_path):
    client = make_client(checkpoint=str(tmp_path / "nothing"), backend=DEFAULT_BACKEND)
    for _ in range(2):
        result = client.make_request(requests(1)[0])
        assert "nothing' is no directory here" in result.error


def test_prepared_requests_are_computed_together_and_once(make_client, watch):
    client = make_client()
    assert prepare(client, [*requests(5), *requests(5)])
    results = [client.make_request(request) for request in [*requests(5), *requests(5)]]
    assert [len(batch) for batch in watch.batches] == [5]
    assert [result.cached for result in results] == [False] * 5 + [True] * 5


def test_preparation_takes_what_the_cache_has(make_client, watch):
    prepare(make_client(), requests(3))
    client = make_client()
    prepare(client, requests(5))
    assert [len(batch) for batch in watch.batches] == [3, 2]
    assert [client.make_request(r).cached for r in requests(5)] == [True] * 3 + [False] * 2


def test_preparation_keeps_what_was_finished(make_client, watch):
    watch.fail_after = 3
    client = make_client()
    assert not prepare(client, requests(5))
    assert [client.make_request(r).success for r in requests(5)] == [True] * 3 + [False] * 2
    watch.fail_after = None
    prepare(make_client(), requests(5))
    assert [len(batch) for batch in watch.batches] == [5, 2]


def test_preparation_sets_invalid_requests_aside(make_client, watch):
    client = make_client()
    mixed = [*requests(2), Request(prompt="a" * 3000), Request(embedding=True)]
    assert not prepare(client, mixed)
    assert [client.make_request(r).success for r in mixed] == [True, True, False, False]
    assert [len(batch) for batch in watch.batches] == [2]


def test_what_was_not_prepared_is_computed_on_demand(make_client, watch):
    client = make_client()
    prepare(client, requests(2))
    assert client.make_request(requests(3)[2]).success
    assert [len(batch) for batch in watch.batches] == [2, 1]


def test_an_interrupted_preparation_keeps_what_was_finished(make_client, watch):
    def interrupt(index):
        if index == 2:
            raise KeyboardInterrupt

    watch.on_result = interrupt
    with pytest.raises(KeyboardInterrupt):
        prepare(make_client(), requests(4))
    watch.on_result = None
    prepare(make_client(), requests(4))
    assert [len(batch) for batch in watch.batches] == [4, 2]


def test_larger_batches_are_advised_once_and_only_where_they_are_missed(make_client, monkeypatch):
    said = []
    monkeypatch.setattr(client_module, "hlog", said.append)
    monkeypatch.setattr(client_module, "ENGINES", EngineRegistry())
    prepared = make_client()
    prepare(prepared, [])
    prepared.make_request(requests(1)[0])
    assert not said
    for request in requests(4)[1:]:
        make_client().make_request(request)
    assert len(said) == 1
    assert "--runner-class-name flexgen_helm.FlexGenRunner" in said[0]


def test_an_unknown_argument_is_named_with_those_there_are(make_client):
    with pytest.raises(
        InvalidSettingError,
        match=r"client_spec.args has device_memory, which is none of checkpoint, compression,"
        r" dtype, device, policy, budget, offload_dir, backend: correct .*model_deployments.yaml",
    ):
        make_client(device_memory="4GB")
