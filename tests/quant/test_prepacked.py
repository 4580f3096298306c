"""4-bit weights in the order in which a processor multiplies with them, against the other order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.quant import prepacked
from flexgen_helm.quant.prepacked import MOST_ROWS, TILE, can_prepack, prepack
from flexgen_helm.quant.quantize import dequantize, quantize
from flexgen_helm.specs.compression import GROUP_SIZES

BFLOAT16 = torch.bfloat16
pytestmark = pytest.mark.skipif(
    not prepacked.reads(4, 64, BFLOAT16), reason="this processor reads 4-bit codes in another order"
)
weights = {
    "tiles": st.integers(1, 5),
    "groups": st.integers(1, 40),
    "group_size": st.sampled_from(GROUP_SIZES),
    "seed": st.integers(0, 2**32),
}


def random_weight(tiles, groups, group_size, seed):
    values = torch.randn(
        tiles * TILE, groups * group_size, generator=torch.Generator().manual_seed(seed)
    )
    return quantize(values, bits=4, group_size=group_size)


def numbers(weight):
    return prepacked.dequantize(weight, torch.empty(weight.num_padded, dtype=BFLOAT16))


@given(**weights)
def test_the_numbers_are_those_of_the_other_order(tiles, groups, group_size, seed):
    weight = random_weight(tiles, groups, group_size, seed)
    stored = prepack(weight)
    assert torch.equal(numbers(stored), dequantize(weight, BFLOAT16))
    assert (stored.num_bytes, stored.num_padded) == (weight.num_bytes, weight.num_padded)


@given(rows=st.integers(1, 2 * MOST_ROWS), with_bias=st.booleans(), **weights)
def test_a_product_is_that_with_the_numbers(rows, with_bias, tiles, groups, group_size, seed):
    weight = random_weight(tiles, groups, group_size, seed)
    hidden = torch.randn(rows, weight.row_len).to(BFLOAT16)
    bias = torch.randn(len(weight.codes)).to(BFLOAT16) if with_bias else None
    exact = hidden.double() @ dequantize(weight, torch.float64).T
    size = hidden.double().abs() @ dequantize(weight, torch.float64).abs().T
    if with_bias:
        exact, size = exact + bias.double(), size + bias.double().abs()
    actual = prepacked.multiply(hidden, prepack(weight), bias).double()
    # Scale, value of the middle code and result are rounded to 8 bits, what is added up is not.
    assert ((actual - exact).abs() <= size * 2**-7).all()


def test_groups_that_are_not_finite_stay_visible():
    values = torch.randn(TILE, 128)
    values[3, 70] = torch.inf
    weight = prepack(quantize(values, bits=4, group_size=64))
    assert numbers(weight).isnan().sum() == 64
    product = prepacked.multiply(torch.ones(1, 128, dtype=BFLOAT16), weight, None)
    assert product.isnan().nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("shape", "bits", "group_size", "dtype"),
    [
        ((TILE + 1, 64), 4, 64, BFLOAT16),
        ((TILE, 96), 4, 64, BFLOAT16),
        ((TILE, 64), 8, 64, BFLOAT16),
        ((TILE, 64), 4, 16, BFLOAT16),
        ((TILE, 64), 4, 64, torch.float32),
    ],
    ids=["tiles", "groups", "bits", "group size", "dtype"],
)
def test_what_there_is_no_product_for_stays_as_it_is(shape, bits, group_size, dtype):
    weight = quantize(torch.randn(shape), bits=bits, group_size=group_size)
    assert not can_prepack(weight, dtype)


@pytest.mark.parametrize(("has_units", "rows"), [(False, 64), (True, 32)])
def test_rows_that_are_few_are_fewer_beside_matrix_units(has_units, rows, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units, raising=False)
    assert prepacked.few_rows(4, 64, BFLOAT16) == rows
    assert prepacked.few_rows(4, 64, torch.float32) == 0


@pytest.mark.parametrize("other", ["order", "nothing"])
def test_a_processor_that_reads_another_order_is_noticed(other, monkeypatch):
    read = torch.ops.aten._weight_int4pack_mm_for_cpu

    def product(rows, codes, group_size, steps):
        if other == "nothing":
            raise RuntimeError("not implemented")
        return read(rows, codes.flip(1), group_size, steps)

    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", product)
    assert not prepacked._is_in_our_order.__wrapped__()
