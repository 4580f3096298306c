import numpy as np
import pytest
import torch

from flexgen_helm.errors import InvalidRequestError, InvalidSettingError
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest, SamplingParams


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": -1}, r"max_tokens=-1 is out of range: it must be at least 0"),
        (
            {"temperature": -0.5},
            r"temperature=-0.5 is out of range: it must be at least 0 \(0 is greedy\)",
        ),
        ({"top_p": 0}, r"top_p=0 is out of range: it must be above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p=1.5 is out of range: it must be above 0 and at most 1"),
        ({"num_completions": 0}, r"num_completions=0 is out of range: it must be at least 1"),
        (
            {"max_tokens": 1.5},
            r"max_tokens=1.5 is out of range: it must be at least 0, a whole num",
        ),
        ({"num_completions": 1.5}, r"num_completions=1.5 .* at least 1, a whole number"),
        (
            {"presence_penalty": float("nan")},
            r"presence_penalty=nan .* a number from -1e\+06 to 1e",
        ),
        ({"frequency_penalty": float("-inf")}, r"frequency_penalty=-inf is out of range"),
        ({"stop": ("a", 3)}, r"stop=\('a', 3\) is out of range: it must be non-empty texts"),
        ({"stop": ("a", "")}, r"stop=\('a', ''\) is out of range: it must be non-empty texts"),
    ],
)
def test_sampling_parameters_out_of_range(fields, message):
    with pytest.raises(InvalidRequestError, match=message):
        SamplingParams(**fields)


def test_a_lone_stop_is_one_stop():
    assert SamplingParams(stop="###").stop == ("###",)
    assert SamplingParams(stop=["###"]) == SamplingParams(stop=("###",))
    assert SamplingParams(stop=None) == SamplingParams()


@pytest.mark.parametrize("prompt", ["The capital", [2.0, 5], [[2, 5]], None, 7])
def test_a_prompt_that_is_no_token_ids(prompt):
    with pytest.raises(InvalidRequestError, match=r"are no whole numbers: encode the text with"):
        GenerationRequest(prompt_token_ids=prompt)


def test_a_prompt_may_be_an_array():
    for ids in (np.array([2, 5]), torch.tensor([2, 5])):
        assert GenerationRequest(prompt_token_ids=ids).prompt_token_ids == (2, 5)


def test_an_empty_prompt_is_refused():
    with pytest.raises(
        InvalidRequestError, match="prompt_token_ids is empty, at least 1 token is needed"
    ):
        GenerationRequest(prompt_token_ids=[])


@pytest.mark.parametrize("field", ["micro_batch_size", "num_micro_batches"])
def test_policy_sizes_are_positive(field):
    with pytest.raises(
        InvalidSettingError, match=f"{field}=0 is out of range: it must be at least 1"
    ):
        Policy(**{field: 0})
