from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from flexgen_helm.model.sampling import Row, SequenceRandom, sample
from flexgen_helm.specs.request import GenerationRequest, SamplingParams
from tests.model.plain_sampling import distribution

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def row(sampling, completion_index=0, generated=(), prompt=(2, 5)):
    request = GenerationRequest(prompt_token_ids=prompt, sampling=sampling)
    return Row(sampling, SequenceRandom(request, completion_index), generated)


def draw_many(sampling, count, logits=LOGITS):
    rows = [row(sampling, index) for index in range(count)]
    return [draw.token_id for draw in sample(logits.expand(count, -1), rows)]


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.9), (0.7, 0.8)]
)
def test_ten_thousand_draws_follow_the_softmax(temperature, top_p):
    count = 10_000
    scaled = (LOGITS.double() / temperature).softmax(0).numpy()
    order = np.argsort(-scaled)
    size = int(np.searchsorted(np.cumsum(scaled[order]), top_p)) + 1 if top_p < 1 else len(scaled)
    kept = np.zeros_like(scaled)
    kept[order[:size]] = scaled[order[:size]]
    kept /= kept.sum()

    drawn = draw_many(SamplingParams(temperature=temperature, top_p=top_p), count)
    counts = np.bincount(drawn, minlength=len(scaled))
    assert counts[kept == 0].sum() == 0
    assert chisquare(counts[kept > 0], count * kept[kept > 0]).pvalue > 0.001


def test_log_probabilities_are_the_models_own():
    sampling = SamplingParams(temperature=0.3, top_p=0.5, presence_penalty=1.0)
    [draw] = sample(LOGITS[None], [row(sampling, generated=(0, 1))])
    assert draw.logprob == pytest.approx(LOGITS.log_softmax(0)[draw.token_id].item(), abs=1e-6)


def test_a_draw_depends_on_nothing_but_its_own_row():
    sampling = SamplingParams(temperature=1.0, seed=7)
    alone = [sample(LOGITS[None], [row(sampling, i)])[0] for i in range(20)]
    together = sample(LOGITS.expand(20, -1), [row(sampling, i) for i in range(20)])
    mixed = sample(
        torch.cat([-LOGITS[None], LOGITS.expand(20, -1)]),
        [row(SamplingParams()), *(row(sampling, i) for i in range(20))],
    )
    assert alone == together == mixed[1:]


@pytest.mark.parametrize(
    "other",
    [
        {"completion_index": 1},
        {"prompt": (2, 6)},
        {"sampling": SamplingParams(temperature=1.0, seed=8)},
        {"generated": (0,)},
    ],
)
def test_completion_prompt_seed_and_step_each_give_other_numbers(other):
    base = {"sampling": SamplingParams(temperature=1.0, seed=7)}

    def number(fields):
        _, random, generated = row(**fields)
        return random.uniform(len(generated))

    assert number(base) == number(base)
    assert number(base) != number(base | other)


def test_greedy_takes_the_first_of_equals():
    assert sample(torch.tensor([[0.0, 3.0, 3.0]]), [row(SamplingParams())])[0].token_id == 1


def test_penalties_by_hand():
    # Token 0 was generated twice: 2.0 - (0.4 + 2 * 0.4) = 0.8, below token 1's 1.0.
    sampling = SamplingParams(presence_penalty=0.4, frequency_penalty=0.4)
    assert sample(LOGITS[None], [row(sampling, generated=(0, 0))])[0].token_id == 1
    assert sample(LOGITS[None], [row(sampling, generated=(0,))])[0].token_id == 0  # 1.2


@pytest.mark.parametrize("temperature", [1e-7, 1e-37, 1e-39, 1e-46, 5e-324])
def test_tiny_temperature_is_nearly_greedy(temperature):
    assert set(draw_many(SamplingParams(temperature=temperature), 50, LOGITS.flip(0))) == {5}


class Uniform(NamedTuple):
    """In the place of a sequence's random numbers."""

    number: float

    def uniform(self, _):
        return self.number


@given(
    num_rows=st.integers(1, 40),
    vocab_size=st.sampled_from([1, 6, 255, 256, 257, 1000]),
    temperature=st.floats(0.05, 5) | st.sampled_from([1e-300, 1e-46, 1e-39, 1e-30, 1e-10]),
    top_p=st.floats(0.01, 1),
    uniform=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 9),
)
def test_a_draw_is_where_its_number_falls_among_all_sums(
    num_rows, vocab_size, temperature, top_p, uniform, seed
):
    logits = 3 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))
    sampling = SamplingParams(temperature=temperature, top_p=top_p)
    rows = [Row(sampling, Uniform(uniform), ())] * num_rows
    for row_logits, draw in zip(logits, sample(logits, rows), strict=True):
        probabilities = distribution(row_logits, sampling)
        end = np.cumsum(probabilities)[draw.token_id]
        begin = end - probabilities[draw.token_id]
        assert begin - 1e-5 <= uniform <= end + 1e-5
        # The nucleus ends where rounding may put either of two tokens.
        fewer = replace(sampling, top_p=min(1.0, top_p + 1e-5))
        assert distribution(row_logits, fewer)[draw.token_id] > 0


@pytest.mark.parametrize(("top_p", "kept"), [(0.6, {0, 1}), (0.01, {0}), (0.81, {0, 1, 2})])
def test_nucleus_keeps_the_smallest_set_that_reaches_top_p(top_p, kept):
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert set(draw_many(SamplingParams(temperature=1.0, top_p=top_p), 200, logits)) == kept


def test_what_is_no_number_draws_a_token_that_exists():
    """The head says then what is wrong."""
    nan = torch.full((2, 300), torch.nan)
    sampling = SamplingParams(temperature=1.0)
    for draw in sample(nan, [row(sampling), row(replace(sampling, top_p=0.5))]):
        assert 0 <= draw.token_id < 300
        assert np.isnan(draw.logprob)
