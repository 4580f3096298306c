from functools import partial

import torch
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.model import sparse_attention
from flexgen_helm.model.attention import merge_
from flexgen_helm.model.sparse_attention import (
    LargestScores,
    attend_shared_top,
    attend_top,
    find_top,
)

H, D = 3, 8


def reference(query, keys, values, own_key, own_value, count):
    """One softmax over a past [h, t, d] and the new position, of which the top is kept."""
    keys, values = (
        torch.cat([x, y[:, None]], 1) for x, y in ((keys, own_key), (values, own_value))
    )
    scores = (keys @ query[..., None])[..., 0]
    weights = scores.softmax(-1)
    for head in weights:
        ranked = head[:-1].argsort(descending=True)
        head[ranked[count:]] = 0
    return (weights[:, None] @ values)[:, 0], scores.logsumexp(-1)


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    shared=st.integers(1, 9),
    percent=st.integers(1, 99),
    chunk_scores=st.sampled_from([1, 1 << 20]),
)
def test_the_top_of_parts_is_the_top_of_all(lengths, shared, percent, chunk_scores):
    """Sequences with a past of their own, of some lengths, behind one that all of them share."""
    b, t = len(lengths), max(*lengths, 1)
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.randn, generator=generator)
    queries, own_keys, own_values = (random(b, H, D) for _ in range(3))
    keys, values = (random(b, H, t, D) for _ in range(2))
    shared_keys, shared_values = (random(H, shared, D) for _ in range(2))
    mask = torch.arange(t) >= torch.tensor(lengths)[:, None]
    counts = [-(-(length + shared) * percent // 100) for length in lengths]

    largest = LargestScores(torch.tensor(counts), max(counts), H)
    top = find_top(queries, keys, mask, max(counts))
    largest.add(slice(0, b), top.scores)
    previous, sparse_attention.CHUNK_SCORES = sparse_attention.CHUNK_SCORES, chunk_scores
    try:
        largest.add_shared(slice(0, b), queries, shared_keys)
        least = largest.thresholds()
        part = attend_shared_top(queries, shared_keys, shared_values, least)
    finally:
        sparse_attention.CHUNK_SCORES = previous
    top_values = values.take_along_dim(top.positions[..., None], dim=2)
    total = attend_top(queries, own_keys, own_values, top, top_values, least)
    merge_(total, part)

    for row, length in enumerate(lengths):
        past = [
            torch.cat(both, dim=1)
            for both in (
                (shared_keys, keys[row, :, :length]),
                (shared_values, values[row, :, :length]),
            )
        ]
        attended, lse = reference(queries[row], *past, own_keys[row], own_values[row], counts[row])
        torch.testing.assert_close(total.values[row], attended, rtol=0, atol=1e-5)
        torch.testing.assert_close(total.lse[row], lse, rtol=0, atol=1e-5)
