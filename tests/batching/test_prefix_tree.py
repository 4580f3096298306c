import resource
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.batching.prefix_tree import NO_NODE, Node, build_tree, prefix_order

PROMPTS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=12
)


def tree_of(prompts, **depths):
    order = prefix_order(prompts)
    lengths = [len(prompts[index]) for index in order.indices]
    return order, build_tree(lengths, order.shared, **depths)


def distinct_prefixes(prompts):
    """What a trie holds, counted without one."""
    return {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}


def test_a_small_tree_by_hand():
    order, nodes = tree_of([(1, 2, 3), (1, 2), (1, 4, 5), (7,), (1, 2)])
    assert order.indices == [1, 4, 0, 2, 3]
    assert order.shared == [0, 2, 2, 1, 0]
    assert nodes == [
        Node(NO_NODE, 0, 1, 0, 4),
        Node(0, 1, 2, 0, 3),
        Node(1, 2, 3, 2, 3),
        Node(0, 1, 3, 3, 4),
        Node(NO_NODE, 0, 1, 4, 5),
    ]


def test_no_prompts():
    assert prefix_order([]) == ([], [])
    assert build_tree([], []) == []


@given(PROMPTS)
def test_every_distinct_prefix_is_one_token_of_the_tree(prompts):
    _, nodes = tree_of(prompts)
    assert sum(node.num_tokens for node in nodes) == len(distinct_prefixes(prompts))


@given(PROMPTS, st.data())
def test_nodes_form_a_tree_and_spell_out_the_prompts(prompts, data):
    order = prefix_order(prompts)
    first, last = prompts[order.indices[0]], prompts[order.indices[-1]]
    kept, keep = data.draw(st.integers(0, len(first))), data.draw(st.integers(0, len(last)))
    _, nodes = tree_of(prompts, kept=kept, keep=keep)
    for index, node in enumerate(nodes):
        assert node.parent < index
        assert node.start == (0 if node.parent == NO_NODE else nodes[node.parent].end)
    for position, index in enumerate(order.indices):
        path = [node for node in nodes if node.first <= position < node.last]
        spelled = [prompts[order.indices[n.first]][n.start : n.end] for n in path]
        assert sum(spelled, ()) == prompts[index]
    ends_on_first_path = {node.end for node in nodes if node.first == 0}
    ends_on_last_path = {node.end for node in nodes if node.last == len(prompts)}
    assert not kept or kept in ends_on_first_path
    assert not keep or keep in ends_on_last_path


@given(PROMPTS)
def test_order_is_a_permutation_and_names_what_neighbours_share(prompts):
    order = prefix_order(prompts)
    assert sorted(order.indices) == list(range(len(prompts)))
    ordered = [prompts[index] for index in order.indices]
    assert ordered == sorted(prompts)
    for position in range(1, len(ordered)):
        shared = order.shared[position]
        one, other = ordered[position - 1], ordered[position]
        assert one[:shared] == other[:shared]
        assert one[: shared + 1] != other[: shared + 1] or one == other


@pytest.mark.parametrize("nested", [False, True])
def test_time_is_linear(nested):
    """A quadratic step would take minutes; prefixes of each other are the deepest tree."""

    def seconds(count):
        prompts = [tuple(range(i % 1000 + 1)) if nested else (1, i, 2) for i in range(count)]
        order = prefix_order(prompts)
        start = time.process_time()
        build_tree([len(prompts[index]) for index in order.indices], order.shared)
        return time.process_time() - start

    many, few = (min(seconds(count) for _ in range(3)) for count in (30_000, 3_000))
    assert many < 60 * max(few, 1e-3)


def test_a_hundred_thousand_prompts_fit_into_memory():
    random = np.random.default_rng(0)
    beginning = random.integers(0, 50_000, 300)
    prompts = [
        np.concatenate([beginning[: random.integers(50, 300)], random.integers(0, 50_000, 200)])
        for _ in range(100_000)
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, nodes = tree_of(prompts)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(nodes) >= 100_000
    assert (after - before) * 1024 < 2e9
