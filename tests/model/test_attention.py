import pytest
import torch

from flexgen_helm.model import attention
from flexgen_helm.model.attention import Attended, attend, attend_one, attend_some, merge_

D = 8


def reference(queries, keys, values, causal=False):
    """One softmax in float64."""
    q, k, v = (x.double() for x in (queries, keys, values))
    scores = q @ k.transpose(-1, -2)
    if causal:
        scores += torch.full(scores.shape[-2:], -torch.inf).triu_(1)
    return Attended(scores.softmax(-1) @ v, scores.logsumexp(-1))


def rows(heads, length, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads, length, D, generator=generator).to(dtype)


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual.values.double(), expected.values, rtol=0, atol=tolerance)
    torch.testing.assert_close(actual.lse.double(), expected.lse, rtol=0, atol=tolerance)


KERNELS = {
    "fused": (attention._fused_on_cpu, torch.float32, 1e-5),
    "products": (attention._by_products, torch.float32, 1e-5),
    "products, bfloat16": (attention._by_products, torch.bfloat16, 0.1),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(3, 5, 9), (12, 1, 1), (6, 300, 40), (3, 130, 700)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_scores", [1, 6 << 20])
def test_attend_against_one_softmax(kernel, shape, causal, chunk_scores, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    function, dtype, tolerance = KERNELS[kernel]
    heads, s, t = shape
    t = s if causal else t
    q, k, v = rows(heads, s, 0, dtype), rows(heads, t, 1, dtype), rows(heads, t, 2, dtype)
    assert_close(function(q, k, v, causal), reference(q, k, v, causal), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_chooses_a_kernel_for_each_dtype(dtype):
    q, k, v = (rows(6, 6, i, dtype) for i in range(3))
    expected = reference(q, k, v, causal=True)
    assert_close(attend(q, k, v, causal=True), expected, 1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("size", [1e3, -1e3], ids=["overflow", "underflow"])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_beyond_the_range_of_exponentials(size, causal):
    q, k, v = (rows(3, 40, i) for i in range(3))
    q[..., 0], k[..., 0] = 1, size
    actual = attention._by_products(q, k, v, causal)
    torch.testing.assert_close(actual.lse.sign(), torch.full((3, 40), size).sign())
    assert_close(actual, reference(q, k, v, causal), 2e-3)


@pytest.mark.parametrize("size", [1e3, -1e3], ids=["overflow", "underflow"])
def test_one_new_position_with_scores_beyond_the_range_of_exponentials(size):
    q, own_k, own_v = (rows(6, 1, i).view(2, 3, D) for i in range(3))
    past_k, past_v = (rows(6, 5, i).view(2, 3, 5, D) for i in (4, 5))
    q[..., 0], past_k[..., 0], own_k[..., 0] = 1, size, size
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    actual = attend_one(q, past_k, past_v, nothing, own_k, own_v)
    keys, values = (
        torch.cat([past, own[:, :, None]], dim=2)
        for past, own in ((past_k, own_k), (past_v, own_v))
    )
    expected = reference(q[:, :, None], keys, values)
    assert_close(actual, Attended(expected.values[:, :, 0], expected.lse[:, :, 0]), 2e-3)


@pytest.mark.parametrize("own", [0.0, 12.0])
def test_one_new_position_in_float16_with_scores_that_are_usual_elsewhere(own):
    """Exponentials of 12, and the sum of 512 of 4, are more than float16 holds."""
    q = torch.ones(1, 1, D).half()
    past_k = torch.full((1, 1, 512, D), 4 / D).half()
    past_v = rows(1, 512, seed=1)[None].half() + 3
    own_k, own_v = torch.full((1, 1, D), own / D).half(), torch.ones(1, 1, D).half()
    nothing = torch.zeros(1, 512, dtype=torch.bool)
    actual = attend_one(q, past_k, past_v, nothing, own_k, own_v)
    keys, values = torch.cat([past_k[0], own_k], 1), torch.cat([past_v[0], own_v], 1)
    expected = reference(q, keys, values)
    torch.testing.assert_close(actual.values.double(), expected.values, rtol=0.01, atol=0.01)
    torch.testing.assert_close(actual.lse.double(), expected.lse, rtol=0.01, atol=0.01)


def test_parts_merge_to_the_whole():
    q, k, v = rows(3, 4, 0), rows(3, 10, 1), rows(3, 10, 2)
    total = Attended(*(x.clone() for x in attend(q, k[:, :3], v[:, :3])))
    for part in (slice(3, 4), slice(4, 10)):
        merge_(total, attend(q, k[:, part], v[:, part]))
    assert_close(total, reference(q, k, v), 1e-5)


def test_one_new_position_sees_its_past_and_itself():
    lengths = [3, 0, 5]
    q, own_k, own_v = (rows(9, 1, i).view(3, 3, D) for i in range(3))  # [b, h, d]
    past_k, past_v = (rows(9, 6, i).view(3, 3, 6, D) for i in (4, 5))  # [b, h, t, d]
    mask = torch.arange(6) >= torch.tensor(lengths)[:, None]
    actual = attend_one(q, past_k, past_v, mask, own_k, own_v)
    for row, length in enumerate(lengths):
        keys = torch.cat([past_k[row, :, :length], own_k[row, :, None]], dim=1)
        values = torch.cat([past_v[row, :, :length], own_v[row, :, None]], dim=1)
        expected = reference(q[row, :, None], keys, values)
        one = Attended(actual.values[row, :, None], actual.lse[row, :, None])
        assert_close(one, expected, 1e-5)


def test_some_positions_see_what_is_not_masked():
    q = rows(6, 2, 0).view(2, 3, 2, D)  # [b, h, s, d]
    k, v = (rows(6, 7, i).view(2, 3, 7, D) for i in (1, 2))
    ends = torch.tensor([[3, 6], [0, 2]])
    actual = attend_some(q, k, v, ends[..., None] < torch.arange(7))
    for slot in range(2):
        for row in range(2):
            seen = slice(0, int(ends[slot, row]) + 1)
            expected = reference(q[slot, :, row, None], k[slot, :, seen], v[slot, :, seen])
            values, lse = actual.values[slot, :, row, None], actual.lse[slot, :, row, None]
            assert_close(Attended(values, lse), expected, 1e-5)
