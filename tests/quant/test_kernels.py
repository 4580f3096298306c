"""Triton's kernels, run by its interpreter where there is no GPU, against PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexgen_helm.quant import kernels
from flexgen_helm.quant.quantize import dequantize, quantize

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

few = settings(max_examples=12)  # the interpreter takes its time


def random(*shape, seed=0, dtype=torch.float32, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(shape, generator=generator)).to(dtype).to(DEVICE)


def plain(tensor, dtype):
    """What PyTorch makes of it: on a GPU `dequantize` would ask the kernel."""
    return dequantize(tensor.map(torch.Tensor.cpu), dtype).to(DEVICE)


def on_cpu(rows, group_size):
    """What PyTorch quantizes: on a GPU `quantize` would ask the kernel."""
    return quantize(rows.cpu(), bits=4, group_size=group_size)


@few
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 5),
    group_size=st.sampled_from([16, 32, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_codes_stand_for_the_same_numbers(rows, groups, group_size, dtype):
    tensor = quantize(random(rows, groups * group_size), bits=4, group_size=group_size)
    out = torch.empty(tensor.num_padded, dtype=dtype, device=DEVICE)
    kernels.dequantize_into(out, tensor)
    expected = plain(tensor, dtype).flatten()
    torch.testing.assert_close(out, expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@few
@given(
    rows=st.integers(1, 4),
    groups=st.integers(1, 20),
    group_size=st.sampled_from([16, 64]),
    gap=st.sampled_from([0, 16]),
)
def test_rows_are_quantized_one_after_another(rows, groups, group_size, gap):
    numbers = random(rows, groups * group_size + gap)[:, : groups * group_size]
    quantized = kernels.quantize(numbers, group_size)
    for tensor, expected in zip(
        quantized.tensors, on_cpu(numbers, group_size).tensors, strict=True
    ):
        assert torch.equal(tensor.cpu(), expected)


@st.composite
def cells(draw):
    """Different cells of three slots of seven positions."""
    chosen = draw(st.lists(st.integers(0, 20), min_size=1, max_size=8, unique=True))
    return [divmod(cell, 7) for cell in chosen]


@few
@given(cells=cells(), group_size=st.sampled_from([16, 64]), spread=st.sampled_from([1e-6, 1, 1e4]))
def test_rows_are_quantized_where_they_belong(cells, group_size, spread):
    rows = random(len(cells), 128, spread=spread)
    rows[0, :group_size] = 1.25  # a group of one number
    room = quantize(torch.zeros(3, 7, 128, device=DEVICE), bits=4, group_size=group_size)
    slots, positions = torch.tensor(cells, device=DEVICE).T
    expected = on_cpu(rows, group_size)
    kernels.quantize_into(room, rows, slots, positions)
    for tensor, part in zip(room.tensors, expected.tensors, strict=True):
        assert torch.equal(tensor[slots, positions].cpu(), part)
        untouched = torch.ones(3, 7, dtype=torch.bool, device=DEVICE)
        untouched[slots, positions] = False
        assert not tensor[untouched].any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's numpy
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf, 1e6, -1e6])
def test_what_float16_cannot_hold_comes_back_as_nan(strange):
    rows = random(1, 128)
    rows[0, 70] = strange
    room = quantize(torch.zeros(1, 1, 128, device=DEVICE), bits=4, group_size=64)
    where = torch.zeros(1, dtype=torch.long, device=DEVICE)
    kernels.quantize_into(room, rows, where, where)
    back = plain(room, torch.float32)[0, 0]
    assert back[64:].isnan().all()
    expected = plain(on_cpu(rows, 64), torch.float32)[0]
    assert torch.equal(back[:64], expected[:64])


@few
@given(
    rows=st.integers(1, kernels.FEW_ROWS),
    outputs=st.integers(1, 70),
    groups=st.integers(1, 9),
    group_size=st.sampled_from([16, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    with_bias=st.booleans(),
)
def test_products_with_packed_weights(rows, outputs, groups, group_size, dtype, with_bias):
    inputs = groups * group_size
    weight = quantize(random(outputs, inputs, seed=1), bits=4, group_size=group_size)
    hidden = random(rows, inputs, seed=2, dtype=dtype)
    bias = random(outputs, seed=3, dtype=dtype) if with_bias else None
    expected = hidden.double() @ plain(weight, dtype).double().T
    if bias is not None:
        expected += bias.double()
    actual = kernels.multiply(hidden, weight, bias)
    assert actual.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=10 * tolerance)


@few
@given(
    ends=st.lists(st.integers(0, 150), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    shape=st.sampled_from([(64, 64), (128, 64), (32, 16), (16, 16)]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_attention_to_a_packed_cache(ends, heads, shape, dtype):
    head_size, group_size = shape
    width = heads * head_size
    keys, values = (
        quantize(random(len(ends), 150, width, seed=seed), bits=4, group_size=group_size)
        for seed in (1, 2)
    )
    queries = random(len(ends), heads, head_size, seed=3, dtype=dtype) * head_size**-0.5
    attended, lse = kernels.attend(queries, keys, values, torch.tensor(ends, device=DEVICE))
    plain_keys, plain_values = (
        plain(x, dtype).unflatten(2, (heads, head_size)).transpose(1, 2).double()
        for x in (keys, values)
    )
    scores = (plain_keys @ queries.double()[..., None])[..., 0]
    hidden = torch.arange(150, device=DEVICE) >= torch.tensor(ends, device=DEVICE)[:, None, None]
    scores = scores.masked_fill(hidden, -torch.inf)
    expected = (scores.softmax(-1).nan_to_num(0)[:, :, None] @ plain_values)[:, :, 0]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(attended.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.fixture
def compiles(monkeypatch):
    """A GPU for which Triton compiles."""
    monkeypatch.setattr(kernels, "_compile", lambda: True)


@pytest.mark.usefixtures("compiles")
@pytest.mark.parametrize(
    ("bits", "group_size", "row_len", "device", "expected"),
    [
        (4, 64, 128, "cuda", True),
        (4, 64, 128, "cpu", False),
        (4, 64, 100, "cuda", False),
        (4, 48, 96, "cuda", False),
        (4, 8, 64, "cuda", False),
        (8, 64, 128, "cuda", False),
        (None, 64, 128, "cuda", False),
    ],
)
def test_there_are_kernels_for_common_groups_of_4_bits(bits, group_size, row_len, device, expected):
    assert kernels.exist_for(bits, group_size, row_len, torch.device(device)) == expected


@pytest.mark.usefixtures("compiles")
def test_heads_share_no_group():
    cuda = torch.device("cuda")
    assert kernels.can_attend(4, 64, 128, cuda)
    assert kernels.can_attend(4, 64, 64, cuda)
    assert not kernels.can_attend(4, 64, 80, cuda)
    assert not kernels.can_attend(4, 128, 64, cuda)


def test_where_triton_compiles_nothing_pytorch_computes(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.warns(UserWarning, match="compiles nothing here .no C compiler.: PyTorch computes"):
        assert not kernels._compile.__wrapped__()
