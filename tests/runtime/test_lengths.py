import dataclasses

import pytest

from flexgen_helm import GenerationRequest, SamplingParams
from flexgen_helm.runtime.lengths import group_of, workload_of
from flexgen_helm.specs.chunks import LEAST_FILLED

POSITIONS = 256


def request(prompt, max_tokens, num_completions=1):
    sampling = SamplingParams(max_tokens=max_tokens, num_completions=num_completions)
    return GenerationRequest(prompt_token_ids=prompt, sampling=sampling)


@pytest.mark.parametrize(
    ("max_tokens", "group"),
    [
        (0, "requests of one token"),
        (1, "requests of one token"),
        (2, "requests of up to 2 tokens"),
        (3, "requests of up to 4 tokens"),
        (64, "requests of up to 64 tokens"),
        (65, "requests of up to 128 tokens"),
    ],
)
def test_lengths_are_grouped(max_tokens, group):
    assert group_of(request([2], max_tokens)) == group


def test_what_prompts_share_is_counted_once():
    """Of 4 + 5 + 3 tokens, the second and third have three and one of those before them."""
    work = workload_of(
        [request([2, 5, 6, 7], 5), request([2, 5, 6, 8, 9], 8), request([2, 4, 4], 6)], POSITIONS
    )
    [group] = work
    assert group.num_requests == 3
    assert group.prompt_len == 4
    assert group.max_prompt_len == 5
    assert group.new_tokens == 8
    assert group.unique_ratio == pytest.approx(8 / 12)
    assert work.longest_shared == 3
    assert work.most_cached == 5 + 7


def test_completions_share_their_whole_prompt():
    [group] = workload_of([request([2, 5, 6, 7], 5, num_completions=4)], POSITIONS)
    assert group.num_requests == 4
    assert group.unique_ratio == pytest.approx(1 / 4)
    assert group.own_len == 1
    assert group.most_cached == 4 + 4 * 4


def test_completions_end_with_the_positions():
    [group] = workload_of([request([2] * 250, 50, num_completions=2)], POSITIONS)
    assert group.new_tokens == 7
    assert group.most_cached == 250 + 2 * 6


def test_requests_that_are_scored_are_counted():
    """Of four requests one."""
    scored = dataclasses.replace(request([2, 5, 6, 7], 1), prompt_logprobs=True)
    work = workload_of([scored, *(request([2, 5, 6, 8 + i], 1) for i in range(3))], POSITIONS)
    [group] = work
    assert group.scored_part == 1 / 4
    assert work.head_rows == 4 + 16 / 4


def test_groups_are_planned_apart():
    work = workload_of([request([2, 3], 1), request([2, 3], 40), request([2, 4], 1)], POSITIONS)
    assert [group.num_requests for group in work] == [2, 1]
    assert [group.decodes for group in work] == [False, True]


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "completions", "filled"),
    [
        ([[5, 6, 7], [6, 6, 7]], (3, 3), 1, 1.0),
        # Own caches of 17 to 20 and of 20 tokens: 3 of the prompts are shared, if they meet.
        ([[*range(9), 1], [*range(3), *range(50, 57)]], (11, 11), 1, 17 / 20),
        ([[5, 6, 7], [6, 6]], (98, 98), 1, 99 / 100),
        ([[5, 6, 7], [6, 6, 7]], (40, 64), 1, LEAST_FILLED),
        ([[5, 6, 7], [6, 6, 7]], (3, 3), 2, LEAST_FILLED),  # completions share their prompt
    ],
)
def test_how_much_of_a_cache_is_no_padding(prompts, max_tokens, completions, filled):
    requests = [
        request(prompt, most, completions) for prompt, most in zip(prompts, max_tokens, strict=True)
    ]
    [group] = workload_of(requests, POSITIONS)
    assert group.least_filled == pytest.approx(filled)
