import dataclasses

import pytest
from helm.common.cache import BlackHoleCacheConfig, SqliteCacheConfig, cache_stats
from helm.common.request import Request

from flexgen_helm.adapter.backend import Identity
from flexgen_helm.adapter.cache import ResponseCache, cache_key, key_text

IDENTITY = Identity(fingerprint="f", compression="w4", dtype="float32")
REQUEST = Request(prompt="a", stop_sequences=["\n"])
TOKENIZER = {"tokenizer": "t", "start_token": "</s>"}


def text(identity=IDENTITY, tokenizer=TOKENIZER, **changes):
    return key_text(cache_key(identity, dataclasses.replace(REQUEST, **changes), **tokenizer))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "b"},
        {"temperature": 0.5},
        {"num_completions": 2},
        {"max_tokens": 5},
        {"stop_sequences": []},
        {"echo_prompt": True},
        {"top_p": 0.5},
        {"presence_penalty": 1},
        {"frequency_penalty": 1},
        {"random": "1"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_an_answer_changes_the_key(change):
    assert text(**change) != text()


@pytest.mark.parametrize("field", ["fingerprint", "compression", "dtype"])
def test_another_model_has_other_keys(field):
    assert text(dataclasses.replace(IDENTITY, **{field: "other"})) != text()


@pytest.mark.parametrize("field", TOKENIZER)
def test_another_tokenizer_has_other_keys(field):
    assert text(tokenizer=TOKENIZER | {field: "other"}) != text()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "m", "model_deployment": "d"},
        {"top_k_per_token": 5},
        {"temperature": 1, "top_p": 1.0, "presence_penalty": 0.0},
        {"stop_sequences": ["\n", ""]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_no_answer_changes_no_key(change):
    assert text(**change) == text()


def test_answers_are_found_again(tmp_path):
    cache = ResponseCache(SqliteCacheConfig(str(tmp_path / "cache.sqlite")))
    key = cache_key(IDENTITY, REQUEST, **TOKENIZER)
    assert cache.lookup(key) is None
    cache.put(key, {"a": [1.5, None]})
    assert cache.lookup(key) == {"a": [1.5, None]}
    with cache.open() as store:
        assert store.get(key) == {"a": [1.5, None]}


def test_a_disabled_cache_keeps_nothing():
    cache = ResponseCache(BlackHoleCacheConfig())
    key = cache_key(IDENTITY, REQUEST, **TOKENIZER)
    cache.put(key, {"a": 1})
    assert cache.lookup(key) is None


def test_queries_and_computations_are_counted(tmp_path):
    path = str(tmp_path / "cache.sqlite")
    cache = ResponseCache(SqliteCacheConfig(path))
    for cached in (False, True, True):
        cache.count(cached=cached)
    assert cache_stats.num_queries[path] == 3
    assert cache_stats.num_computes[path] == 1
