import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.placement import ON_DEVICE, Placement, Tier, place_evenly
from flexgen_helm.specs.policy import Policy

OPT_LAYER = {"qkv_proj": 3, "out_proj": 1, "fc1": 4, "fc2": 4}
"""Bytes of an OPT layer's matrices, in units of the smallest."""


@pytest.mark.parametrize("fractions", [{"disk": 0.5}, {"device": 1.5, "disk": -0.5}, {}])
def test_fractions_are_parts_of_a_whole(fractions):
    with pytest.raises(InvalidSettingError, match="at least 0, and their sum is 1"):
        Placement(**fractions)


@given(
    parts=st.tuples(*[st.integers(0, 10)] * 3).filter(any),
    num_layers=st.integers(12, 96),
)
def test_fractions_hold_overall_and_up_to_each_layer(parts, num_layers):
    fractions = [part / sum(parts) for part in parts]
    placement = Placement(**dict(zip(("device", "host", "disk"), fractions, strict=True)))
    placed = place_evenly([OPT_LAYER] * num_layers, placement)
    used = dict.fromkeys(Tier, 0)
    for layer, tiers in enumerate(placed, start=1):
        for name, tier in tiers.items():
            used[tier] += OPT_LAYER[name]
        for tier in Tier:
            # Half of a layer's largest matrix, in the worst case, at any point of the model.
            assert abs(used[tier] - placement.on(tier) * 12 * layer) <= 2
    total = 12 * num_layers
    assert all(abs(used[tier] / total - placement.on(tier)) <= 0.02 for tier in Tier)


def test_a_policy_of_plain_values():
    policy = Policy.from_settings({"num_micro_batches": 7, "weights": {"disk": 1}})
    assert policy == Policy(num_micro_batches=7, weights=Placement(disk=1))
    assert Policy.from_settings({}).weights == ON_DEVICE


@pytest.mark.parametrize(
    "settings", [{"batch": 1}, {"weights": {"ssd": 1}}, {"weights": 1}, "auto", ["overlap"]]
)
def test_a_policy_with_fields_that_do_not_exist(settings):
    with pytest.raises(InvalidSettingError, match="is not understood .* it has the fields micro_"):
        Policy.from_settings(settings)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("micro_batch_tokens", 100.5, "is out of range: it must be at least 1, a whole number"),
        ("micro_batch_size", None, "is out of range"),
        ("num_micro_batches", True, "is out of range"),
        ("cache_bytes", "4GB", "is out of range"),
        ("overlap", "no", "is not possible: it is true or false"),
        ("share_prefixes", 0, "is not possible"),
        ("attention", ["host"], "is not possible: it is one of"),
    ],
)
def test_values_of_another_kind(field, value, message):
    with pytest.raises(InvalidSettingError, match=re.escape(f"{field}={value!r} {message}")):
        Policy.from_settings({field: value})
