import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.batching import packing
from flexgen_helm.batching.packing import KEPT, pack_tree
from flexgen_helm.batching.prefix_tree import build_tree, prefix_order
from flexgen_helm.batching.readings import NO_SEGMENT


def pack(prompts, decoding=None, *, micro_batch_tokens=1000, kept=0, keep=0):
    order = prefix_order(prompts)
    ordered = [prompts[index] for index in order.indices]
    nodes = build_tree([len(p) for p in ordered], order.shared, kept=kept, keep=keep)
    decoding = decoding or [0] * len(prompts)
    return ordered, pack_tree(
        nodes, decoding, micro_batch_tokens=micro_batch_tokens, kept=kept, keep=keep
    )


def test_a_long_beginning_of_many_is_a_segment():
    beginning = [1] * 50
    _, tree = pack([[*beginning, 2, i] for i in range(3)])
    [micro_batch] = tree.micro_batches
    assert micro_batch.num_rows == 51 + 3
    assert [place.segment for place in tree.places] == [0] + [NO_SEGMENT] * 3
    assert micro_batch.readings == [((0,), slice(51, 54))]


def test_a_short_beginning_is_seen_as_a_copy():
    _, tree = pack([[1, 2, i] for i in range(3)])
    [micro_batch] = tree.micro_batches
    assert micro_batch.num_rows == 2 + 3
    assert micro_batch.readings == []
    assert [place.chain.tolist() for place in tree.places] == [
        [0, 1],
        [0, 1, 2],
        [0, 1, 3],
        [0, 1, 4],
    ]


def test_where_sequences_decode_a_segment_must_be_read_more():
    beginning = [1] * 50
    prompts = [[*beginning, 2, i] for i in range(3)]
    _, tree = pack(prompts, [1, 1, 1])
    assert tree.owners == []
    _, tree = pack(prompts, [10, 10, 10])
    assert len(tree.owners) == 1


def test_completions_of_one_prompt_share_it():
    _, tree = pack([[1] * 50], [30])
    assert tree.places[0].segment == 0


def test_micro_batches_are_of_about_equal_size():
    prompts = [[i] * 10 for i in range(24)]
    _, tree = pack(prompts, micro_batch_tokens=100)
    assert [micro_batch.num_rows for micro_batch in tree.micro_batches] == [80, 80, 80]


def test_a_prompt_longer_than_a_micro_batch_is_cut():
    _, tree = pack([[1] * 250], micro_batch_tokens=100)
    assert [micro_batch.num_rows for micro_batch in tree.micro_batches] == [100, 100, 50]
    assert [place.segment for place in tree.places] == [0, 1, NO_SEGMENT]
    assert [len(micro_batch.readings) for micro_batch in tree.micro_batches] == [0, 1, 1]


def visible_tokens(ordered, tree):
    """Tokens each place sees, read off segments, chains and carried rows, as the executor does."""
    seen = []
    for index, micro_batch in enumerate(tree.micro_batches):
        carried = [seen[index - 1][row] for row in micro_batch.carried]
        own = [
            (node.first, depth)
            for node in (place.node for place in micro_batch.places)
            for depth in range(node.start, node.end)
        ]
        seen.append(carried + own)

    def tokens(rows):
        return [ordered[position][depth] for position, depth in rows]

    def chain(place):
        if place.micro_batch == KEPT:
            return ordered[0][place.node.start : place.node.end]
        return tokens([seen[place.micro_batch][row] for row in place.chain])

    for place in tree.places:
        segments = [tree.places[tree.owners[s]] for s in tree.path(place.context)]
        yield place, [token for owner in [*segments, place] for token in chain(owner)]


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=12),
    st.integers(1, 30),
    st.sampled_from([1, 6, 128]),
    st.sampled_from([0, 3, 64]),
    st.data(),
)
def test_every_node_sees_its_prompt_and_nothing_else(prompts, size, reads, carried, data):
    lengths = sorted(prompts)
    kept = data.draw(st.sampled_from([0, len(lengths[0])]))
    keep = data.draw(st.sampled_from([0, len(lengths[-1])]))
    decoding = data.draw(
        st.lists(st.sampled_from([0, 1, 3]), min_size=len(prompts), max_size=len(prompts))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_SEGMENT_READS", reads)
        patch.setattr(packing, "MIN_DECODED_SEGMENT_READS", reads)
        patch.setattr(packing, "MAX_CARRIED", carried)
        ordered, tree = pack(prompts, decoding, micro_batch_tokens=size, kept=kept, keep=keep)
    for place, seen in visible_tokens(ordered, tree):
        assert seen == ordered[place.node.first][: place.node.end]
        if place.micro_batch != KEPT:
            readings = tree.micro_batches[place.micro_batch].readings
            reading = [r for r in readings if r.rows.start <= place.row < r.rows.stop]
            read = sorted(segment for r in reading for segment in r.segments)
            assert read == tree.path(place.context)
    computed = {
        tuple(ordered[p.node.first][:end])
        for p in tree.places
        if p.micro_batch != KEPT
        for end in range(p.node.start + 1, p.node.end + 1)
    }
    assert sum(m.num_rows for m in tree.micro_batches) == len(computed)
    assert all(0 < m.num_rows <= size for m in tree.micro_batches)
