import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flexgen_helm.quant.quantize import dequantize, dequantize_into, quantize
from flexgen_helm.specs.compression import BITS, GROUP_SIZES, quantized_bytes

rows = hnp.arrays(
    "float32",
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=70),
    elements=st.floats(-1000, 1000, width=32),
)
bits_and_group = {"bits": st.sampled_from(BITS), "group_size": st.sampled_from(GROUP_SIZES)}


@given(values=rows, **bits_and_group)
def test_error_is_at_most_half_a_step(values, bits, group_size):
    values = torch.from_numpy(values)
    quantized = quantize(values, bits=bits, group_size=group_size)
    back = dequantize(quantized, torch.float32)
    assert back.shape == values.shape
    steps = quantized.scale.float().expand(*quantized.scale.shape[:-1], group_size)
    step = steps.flatten(-2)[..., : values.shape[-1]]
    # float16 keeps 11 bits of the zero and of the scale (which codes multiply by up to 255).
    rounding = (values.abs().amax() * 2 + 1e-3) * 2**-10
    assert ((back - values).abs() <= step / 2 + rounding).all()


@given(values=rows, **bits_and_group)
def test_bytes_are_those_of_the_formula(values, bits, group_size):
    values = torch.from_numpy(values)
    quantized = quantize(values, bits=bits, group_size=group_size)
    num_rows = math.prod(values.shape[:-1])
    assert quantized.num_bytes == quantized_bytes(
        num_rows=num_rows, row_len=values.shape[-1], bits=bits, group_size=group_size
    )


def test_ramp_by_hand():
    ramp = torch.arange(64.0)  # 2 bits: zero 0, scale 21, so values become 0, 21, 42 or 63
    quantized = quantize(ramp, bits=2, group_size=64)
    assert quantized.zero.item() == 0
    assert quantized.scale.item() == 21
    assert dequantize(quantized, torch.float32).unique().tolist() == [0, 21, 42, 63]


@pytest.mark.parametrize("bits", BITS)
def test_constant_groups_are_exact(bits):
    values = torch.full((2, 64), 3.25)
    assert torch.equal(
        dequantize(quantize(values, bits=bits, group_size=32), torch.float32), values
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e6])
def test_unrepresentable_values_stay_visible_in_their_group_only(broken):
    values = torch.ones(2, 64)
    values[1, 40] = broken
    back = dequantize(quantize(values, bits=4, group_size=32), torch.float32)
    assert torch.equal(back[0], values[0])
    assert torch.equal(back[1, :32], values[1, :32])
    assert back[1, 32:].isnan().all()


def test_four_bits_take_less_than_a_third_of_sixteen():
    quantized = quantize(torch.randn(128, 256), bits=4, group_size=64)
    assert quantized.num_bytes / (128 * 256 * 2) <= 0.30


@given(values=rows, **bits_and_group)
def test_a_buffer_does_not_change_what_comes_out(values, bits, group_size):
    quantized = quantize(torch.from_numpy(values), bits=bits, group_size=group_size)
    buffer = torch.full((quantized.num_padded,), math.nan)
    back = dequantize(quantized, torch.float32, buffer)
    assert torch.equal(back, dequantize(quantized, torch.float32))


@given(
    slots=st.integers(1, 4),
    positions=st.integers(1, 9),
    heads=st.integers(1, 3),
    groups=st.integers(1, 2),
    at_once=st.integers(1, 3000),
    **bits_and_group,
)
def test_numbers_come_out_in_any_order(slots, positions, heads, groups, at_once, bits, group_size):
    """By head, as attention reads them; [b, h, t, d]."""
    values = torch.randn(slots, positions, heads * groups * group_size)
    quantized = quantize(values, bits=bits, group_size=group_size)
    by_head = torch.full((slots, heads, positions, groups * group_size), math.nan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flexgen_helm.quant.quantize.DEQUANTIZED_AT_ONCE", at_once)
        dequantize_into(by_head.transpose(1, 2).unflatten(3, (-1, group_size)), quantized)
    assert torch.equal(by_head.transpose(1, 2).flatten(2), dequantize(quantized, torch.float32))
