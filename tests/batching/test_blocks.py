from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.batching.blocks import BlockBudget, Demand, PendingRequests, cut

DECODES, PREFILL_ONLY = Demand(sequences=1, new_tokens=5), Demand(sequences=0, new_tokens=0)
AMPLE = BlockBudget(sequences=1000, cached_tokens=100_000, prompt_tokens=100_000)


def make_pending(prompts, **options):
    demands = dict.fromkeys(range(len(prompts)), DECODES)
    return PendingRequests(dict(enumerate(prompts)), demands, **options)


def budget(**changes):
    return BlockBudget(**{**vars(AMPLE), **changes})


@pytest.mark.parametrize(
    ("demand", "limits", "end"),
    [
        pytest.param(DECODES, {}, 4, id="everything fits"),
        pytest.param(DECODES, {"sequences": 3}, 3, id="sequences run out"),
        pytest.param(DECODES, {"cached_tokens": 10 + 5 + 4 + 5}, 2, id="cache runs out"),
        pytest.param(PREFILL_ONLY, {"sequences": 0, "cached_tokens": 0}, 4, id="needs no cache"),
        pytest.param(PREFILL_ONLY, {"prompt_tokens": 10 + 4}, 2, id="prompt tokens run out"),
        pytest.param(PREFILL_ONLY, {"prompt_tokens": 9}, 0, id="not even one fits"),
    ],
)
def test_cut(demand, limits, end):
    assert cut([10, 10, 10, 10], [0, 6, 6, 6], [demand] * 4, 0, budget(**limits)) == end


def test_a_position_costs_what_it_does_not_share_with_the_one_before():
    two = budget(prompt_tokens=8)
    assert cut([10, 10, 10, 10], [0, 6, 6, 6], [PREFILL_ONLY] * 4, 1, two, kept=6) == 3


def test_what_the_block_before_has_left_is_cached_but_not_computed_again():
    lengths, shared, demands = [10, 10], [7, 6], [DECODES] * 2
    first = 10 + 5
    for cached, end in ((first - 1, 0), (first, 1), (first + 4 + 5, 2)):
        assert cut(lengths, shared, demands, 0, budget(cached_tokens=cached), kept=7) == end
    for tokens, end in ((2, 0), (3, 1), (3 + 4, 2)):
        assert cut(lengths, shared, demands, 0, budget(prompt_tokens=tokens), kept=7) == end


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=15),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(0, 6),
)
def test_blocks_hold_every_request_once_and_say_what_the_next_shares(
    prompts, tokens, min_kept, max_kept
):
    pending = make_pending(prompts)
    blocks = []
    while pending:
        limits = budget(prompt_tokens=tokens)
        blocks.append(pending.take(limits, at_least=1, min_kept=min_kept, max_kept=max_kept))
    taken = [prompts[index] for block in blocks for index in block.requests]
    assert taken == sorted(prompts)
    for block, following in pairwise(blocks):
        one, other = prompts[block.requests[-1]], prompts[following.requests[0]]
        common = next(
            (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
            min(len(one), len(other)),
        )
        kept = min(common, max_kept)
        assert block.keep == (kept if kept >= min_kept else 0)
    assert blocks[-1].keep == 0


def test_what_does_not_fit_waits_unless_it_must_be_taken():
    pending = make_pending([[1, 2, 3]])
    assert pending.take(budget(prompt_tokens=2), at_least=0, min_kept=1).requests == ()
    assert pending
    assert pending.take(budget(prompt_tokens=2), at_least=1, min_kept=1).requests == (0,)
    assert not pending


def test_what_was_put_back_is_taken_again():
    pending = make_pending([[1, 2, 3], [1, 2, 4], [1, 2, 5]])
    few = budget(prompt_tokens=4)
    first = pending.take(few, at_least=1, min_kept=1)
    second = pending.take(few, at_least=1, min_kept=1)
    assert (first.keep, second.shared) == (2, (2,))
    pending.put_back()
    assert pending.take(few, at_least=1, min_kept=1) == second


@pytest.mark.parametrize(
    ("limits", "gains"),
    [
        ({"sequences": 3}, True),
        ({"sequences": 3, "prompt_tokens": 30}, False),  # a full pass
        ({"cached_tokens": 40}, True),
        ({"cached_tokens": 0}, True),
        ({"sequences": 5}, False),  # all there are
        ({"prompt_tokens": 9}, False),
    ],
)
def test_waiting_gains_only_where_room_to_cache_is_short(limits, gains):
    pending = make_pending([[index] * 10 for index in range(5)])
    assert pending.gains_by_waiting(budget(**limits)) == gains
    pending.take(AMPLE, at_least=0, min_kept=1)
    assert not pending.gains_by_waiting(budget(**limits)), "nothing is left"


def test_without_sharing_requests_stay_in_order():
    pending = make_pending([[3], [1, 2], [1]], share_prefixes=False)
    block = pending.take(AMPLE, at_least=1, min_kept=1)
    assert (block.requests, block.shared) == ((0, 1, 2), (0, 0, 0))
