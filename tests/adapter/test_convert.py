import dataclasses
import json

import pytest
from helm.common.image_generation_parameters import ImageGenerationParameters
from helm.common.media_object import MultimediaObject
from helm.common.request import Request
from helm.common.response_format import ResponseFormat
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.adapter.backend import EngineSettings
from flexgen_helm.adapter.convert import (
    check_supported,
    to_failure,
    to_generation_request,
    to_request_result,
    to_sampling,
    to_seed,
)
from flexgen_helm.adapter.fake import FakeBackend
from flexgen_helm.adapter.prompts import encode_prompt
from flexgen_helm.adapter.responses import read_response, write_response
from flexgen_helm.adapter.text_tokenizer import TextTokenizer, describe_tokenizer
from flexgen_helm.errors import InvalidRequestError, UnsupportedRequestError
from flexgen_helm.specs.request import Completion, EngineDescription, GenerationResult
from flexgen_helm.specs.statistics import RequestStatistics
from tests.conftest import byte_tokenizer

TOKENIZER = TextTokenizer(describe_tokenizer(byte_tokenizer()))
ENGINE = FakeBackend().load(EngineSettings(checkpoint="any"))


def answer(request, *, cached=False):
    prompt = encode_prompt(request.prompt, TOKENIZER)
    [result] = ENGINE.generate([to_generation_request(request, prompt)])
    response = write_response(
        result, engine=ENGINE.description, prompt=prompt, request_datetime=1000
    )
    return to_request_result(request, json.loads(json.dumps(response)), cached=cached)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"max_tokens": 0}, "max_tokens", 0),
        ({"max_tokens": 7}, "max_tokens", 7),
        ({"temperature": 0}, "temperature", 0.0),
        ({"temperature": 0.3}, "temperature", 0.3),
        ({"top_p": 0.9}, "top_p", 0.9),
        ({"num_completions": 3}, "num_completions", 3),
        ({"stop_sequences": []}, "stop", ()),
        ({"stop_sequences": ["\n", "##"]}, "stop", ("\n", "##")),
        ({"stop_sequences": ["", "\n"]}, "stop", ("\n",)),
        ({"random": None}, "seed", None),
        ({"random": "1"}, "seed", 0xF6FC42039FBA3776),
        ({"presence_penalty": 0.5}, "presence_penalty", 0.5),
        ({"frequency_penalty": -0.5}, "frequency_penalty", -0.5),
    ],
    ids=str,
)
def test_sampling_fields(fields, name, value):
    assert getattr(to_sampling(Request(**fields)), name) == value


def test_top_k_per_token_is_no_sampling_parameter():
    assert to_sampling(Request(top_k_per_token=5)) == to_sampling(Request(top_k_per_token=1))


def test_seeds_are_64_bits_and_tell_texts_apart():
    seeds = {to_seed(str(number)) for number in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": -1}, "max_tokens=-1 is out of range: it must be at least 0"),
        ({"temperature": -0.1}, "temperature=-0.1 is out of range"),
        ({"top_p": 0}, "top_p=0.0 is out of range: it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 is out of range"),
        ({"num_completions": 0}, "num_completions=0 is out of range: it must be at least 1"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(InvalidRequestError, match=message):
        to_sampling(Request(**fields))


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("embedding", True, "choose an embedding model"),
        ("messages", [{"role": "user", "content": "hello " * 50}], "put it into `prompt`"),
        ("multimodal_prompt", MultimediaObject([]), "choose a vision-language model"),
        ("image_generation_parameters", ImageGenerationParameters(), "choose an image model"),
        ("response_format", ResponseFormat(), "ask for it in `prompt`"),
    ],
)
def test_unsupported_fields(field, value, remedy):
    with pytest.raises(UnsupportedRequestError) as error:
        check_supported(Request(**{field: value}))
    message = str(error.value)
    assert message.startswith(f"{field}={repr(value)[:60]}")
    assert "is not supported, it must be empty" in message
    assert message.endswith(remedy)


def test_a_plain_request_is_supported():
    check_supported(Request(prompt="a", messages=None, embedding=False))


def test_completions_are_converted():
    result = answer(Request(prompt="ab", temperature=1.0, num_completions=3, max_tokens=5))
    assert result.success
    assert result.embedding == []
    assert len(result.completions) == 3
    for completion in result.completions:
        assert completion.text == "".join(token.text for token in completion.tokens)
        assert completion.logprob == sum(token.logprob for token in completion.tokens)
        assert completion.finish_reason["reason"] in {"stop", "length", "endoftext"}


def test_nothing_is_generated_for_max_tokens_0():
    [completion] = answer(Request(prompt="ab", max_tokens=0)).completions
    assert completion.text == ""
    assert completion.tokens == []
    assert completion.logprob == 0


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_an_echo_begins_with_the_prompts_tokens(max_tokens):
    [completion] = answer(
        Request(prompt="ab☃", max_tokens=max_tokens, echo_prompt=True)
    ).completions
    echoed = completion.tokens[: len("ab☃".encode())]
    assert completion.text.startswith("ab☃")
    assert "".join(token.text for token in completion.tokens) == completion.text
    assert "".join(token.text for token in echoed) == "ab☃"
    assert all(token.logprob < 0 for token in completion.tokens)


def test_an_explicit_bos_is_echoed_without_log_probability():
    [completion] = answer(Request(prompt="</s>ab", max_tokens=0, echo_prompt=True)).completions
    assert [token.text for token in completion.tokens] == ["</s>", "a", "b"]
    assert [token.logprob == 0 for token in completion.tokens] == [True, False, False]


def test_explicit_and_implicit_bos_give_the_same_log_probabilities():
    [explicit] = answer(Request(prompt="</s>ab", max_tokens=0, echo_prompt=True)).completions
    [implicit] = answer(Request(prompt="ab", max_tokens=0, echo_prompt=True)).completions
    assert explicit.tokens[1:] == implicit.tokens
    assert explicit.logprob == implicit.logprob


def test_times_are_the_requests_share_of_its_block():
    result = answer(Request(prompt="ab", max_tokens=0))
    assert result.request_time == pytest.approx(3e-6)
    assert result.request_datetime == 1000
    assert result.batch_size == 1
    assert result.batch_request_time / result.batch_size == pytest.approx(result.request_time)


def test_a_cached_answer_differs_in_nothing_else():
    request = Request(prompt="ab", echo_prompt=True, num_completions=2)
    assert dataclasses.replace(answer(request, cached=True), cached=False) == answer(request)


def test_failures_are_not_retried():
    failure = to_failure("prompt is too long")
    assert not failure.success
    assert failure.error == "prompt is too long"
    assert failure.error_flags.is_retriable is False
    assert failure.error_flags.is_fatal is True


floats = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**40)
completions = st.builds(
    lambda parts, reason: Completion(
        token_ids=tuple(part[0] for part in parts),
        token_texts=tuple(part[1] for part in parts),
        logprobs=tuple(part[2] for part in parts),
        text="".join(part[1] for part in parts),
        finish_reason=reason,
    ),
    st.lists(st.tuples(counts, st.text(max_size=3), floats), max_size=4),
    st.sampled_from(["stop", "length", "endoftext"]),
)
results = st.builds(
    GenerationResult,
    completions=st.lists(completions, min_size=1, max_size=3).map(tuple),
    prompt_logprobs=st.none() | st.lists(floats, max_size=4).map(lambda rest: (None, *rest)),
    statistics=st.builds(
        RequestStatistics,
        **{
            field.name: floats if field.name.endswith("_s") else counts
            for field in dataclasses.fields(RequestStatistics)
        },
    ),
)


@given(result=results)
def test_responses_survive_json(result):
    description = EngineDescription(
        **{
            field.name: "text" if field.type == "str" else 1
            for field in dataclasses.fields(EngineDescription)
        }
    )
    prompt = encode_prompt("a", TOKENIZER)
    response = write_response(result, engine=description, prompt=prompt, request_datetime=1)
    assert json.loads(json.dumps(response)) == response
    assert read_response(response) == result
