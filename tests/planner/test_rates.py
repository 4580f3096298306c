"""Which weights are dequantized, and which multiplied as they are stored."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.planner.rates import MOST_PACKED_ROWS, Rates
from flexgen_helm.specs.hardware import Curve, Surface
from flexgen_helm.specs.placement import Tier
from tests.planner.machines import CPU, flat, setup_of


def rates(*, dense=4e9, packed=2e9, dequantized=0.9e9, label="w4", **changes):
    hardware = replace(
        CPU,
        product_flop_per_s=flat(dense),
        packed_flop_per_s=packed and flat(packed),
        dequantized_weights_per_s=Curve(((1.0, dequantized),)),
        **changes,
    )
    return Rates(setup_of(hardware, label), hardware)


def test_few_rows():
    """A number takes half a nanosecond a row, one nanosecond as a code, and 1.1 to dequantize."""
    assert rates().few_rows(MOST_PACKED_ROWS) == 2
    assert rates(dequantized=1.99e7).few_rows(MOST_PACKED_ROWS) == 100
    assert rates(dequantized=1.9e9).few_rows(MOST_PACKED_ROWS) == 1
    assert rates(dequantized=4e9).few_rows(MOST_PACKED_ROWS) == 0
    assert rates(packed=4e9).few_rows(MOST_PACKED_ROWS) == MOST_PACKED_ROWS


def test_they_are_unknown_where_nothing_multiplies_codes():
    assert rates(packed=None).few_rows(64) is None
    for label in ("none", "w8", "w3"):
        assert rates(label=label).few_rows(64) is None
    assert rates(dtype="float32").few_rows(64) is None


def test_small_micro_batches_leave_more_rows_as_they_are():
    """A row takes four times as long in a product of its own as in one of four."""
    known = rates(dequantized=1.99e7)
    dense = Surface(((1.0, Curve(((1.0, 1e9), (4.0, 4e9)))),))
    slow = Rates(known.setup, replace(known.hardware, product_flop_per_s=dense))
    assert slow.few_rows(4) == 100
    assert slow.few_rows(1) == MOST_PACKED_ROWS


@given(
    st.floats(1e8, 1e11),
    st.floats(1e8, 1e11),
    st.floats(1e6, 1e10),
    st.integers(1, MOST_PACKED_ROWS),
    st.integers(1, 100),
)
def test_they_are_those_that_plans_count_on(dense, packed, dequantized, rows, size):
    known = rates(dense=dense, packed=packed, dequantized=dequantized)
    found = known.with_weights(rows, min(rows, size), times=1)
    stays = found["dequantized weights"].constant == 0
    assert stays == (rows <= known.few_rows(size))


@pytest.mark.parametrize("rows", [1, 16, 200])
def test_a_faster_product_is_never_slower(rows):
    def seconds(**changes):
        found = rates(**changes).with_weights(1000, rows, times=1000 / rows)
        in_memory = {("weights", tier): float(tier is Tier.DEVICE) for tier in Tier}
        return sum(term.at(in_memory) for term in found.values())

    for name, values in {
        "dense": (1e9, 2e9, 8e9), "packed": (1e9, 2e9, 8e9), "dequantized": (1e7, 1e8, 1e9)
    }.items():  # fmt: skip
        times = [seconds(**{name: value}) for value in values]
        assert times == sorted(times, reverse=True)
