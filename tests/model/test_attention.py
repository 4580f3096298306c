import pytest
import torch

from flexgen_helm.model import attention
from flexgen_helm.model.attention import Attended, attend, attend_one, merge_

H, D = 3, 8


def reference(queries, keys, values, causal=False):
    """One softmax in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (queries, keys, values))
    scores = q @ k.transpose(-1, -2)
    if causal:
        scores += torch.full(scores.shape[-2:], -torch.inf).triu_(1)
    values = (scores.softmax(-1) @ v).transpose(1, 2)
    return Attended(values, scores.logsumexp(-1).transpose(1, 2))


def rows(batch, length, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, H, D, generator=generator).to(dtype)


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual.values.double(), expected.values, rtol=0, atol=tolerance)
    torch.testing.assert_close(actual.lse.double(), expected.lse, rtol=0, atol=tolerance)


KERNELS = {
    "fused": (attention._fused_on_cpu, torch.float32, 1e-5),
    "products": (attention._by_products, torch.float32, 1e-5),
    "products, bfloat16": (attention._by_products, torch.bfloat16, 0.1),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(1, 5, 9), (4, 1, 1), (2, 300, 40), (1, 130, 700)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk_scores", [1, 6 << 20])
def test_attend_against_one_softmax(kernel, shape, causal, chunk_scores, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK_SCORES", chunk_scores)
    function, dtype, tolerance = KERNELS[kernel]
    batch, s, t = shape
    q, k, v = (
        rows(batch, n, i, dtype) for i, n in enumerate((s, s if causal else t, s if causal else t))
    )
    actual = function(*(x.transpose(1, 2) for x in (q, k, v)), causal)
    actual = Attended(*(x.transpose(1, 2) for x in actual))
    assert_close(actual, reference(q, k, v, causal), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend_chooses_a_kernel_for_each_dtype(dtype):
    q, k, v = (rows(2, 6, i, dtype) for i in range(3))
    expected = reference(q, k, v, causal=True)
    assert_close(attend(q, k, v, causal=True), expected, 1e-5 if dtype == torch.float32 else 0.05)


def test_lse_where_the_first_keys_have_no_weight():
    q, k, v = (rows(1, 40, i) for i in range(3))
    k[:, :20] = -100 * q.sign().mean(1, keepdim=True)
    k[:, 30] = 100 * q.mean(1)
    actual = attention._by_products(*(x.transpose(1, 2) for x in (100 * q, k, v)), False)
    expected = reference(100 * q, k, v)
    torch.testing.assert_close(
        actual.lse.transpose(1, 2).double(), expected.lse, rtol=1e-5, atol=1e-3
    )


def test_parts_merge_to_the_whole():
    q, k, v = rows(1, 4, 0), rows(1, 10, 1), rows(1, 10, 2)
    expected = reference(q, k, v)
    total = Attended(*(x[0].clone() for x in attend(q, k[:, :3], v[:, :3])))
    for part in (slice(3, 4), slice(4, 10)):
        other = attend(q, k[:, part], v[:, part])
        merge_(total, slice(0, 4), Attended(other.values[0], other.lse[0]))
    assert_close(Attended(total.values[None], total.lse[None]), expected, 1e-5)


def test_merging_touches_only_its_rows():
    q, k = rows(1, 4, 0), rows(1, 5, 1)
    total = Attended(*(x[0].clone() for x in attend(q, k, k)))
    before = total.values.clone()
    part = attend(q[:, 1:2], 2 * k, k)
    merge_(total, slice(1, 2), Attended(part.values[0], part.lse[0]))
    assert (total.values[[0, 2, 3]] == before[[0, 2, 3]]).all()
    assert not torch.equal(total.values[1], before[1])


def test_one_new_position_sees_its_past_and_itself():
    lengths = [3, 0, 5]
    q, own_k, own_v = (rows(3, 1, i)[:, 0] for i in range(3))
    past_k, past_v = rows(3, 6, 4), rows(3, 6, 5)
    mask = torch.arange(6) >= torch.tensor(lengths)[:, None]
    actual = attend_one(q, past_k.transpose(1, 2), past_v.transpose(1, 2), mask, (own_k, own_v))
    for row, length in enumerate(lengths):
        keys = torch.cat([past_k[row, :length], own_k[row, None]])[None]
        values = torch.cat([past_v[row, :length], own_v[row, None]])[None]
        expected = reference(q[row][None, None], keys, values)
        one = Attended(actual.values[row][None, None], actual.lse[row][None, None])
        assert_close(one, expected, 1e-5)
