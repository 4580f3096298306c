import pytest

from flexgen_helm import MemoryBudget
from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.placement import Tier


def test_sizes_are_read_as_people_write_them():
    budget = MemoryBudget.from_settings({"device": "16GB", "host": 1024, "disk": None})
    assert [budget.on(tier) for tier in Tier] == [16 * 10**9, 1024, None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "much"}, "device memory 'much' is not a size: write a number and"),
        ({"host": 0}, "host memory 0 is out of range"),
        ({"disk": "0 GB"}, "disk memory '0 GB' is out of range"),
        ({"gpu": "1GB"}, "it has the fields device, host and disk"),
        ({"disk": True}, "disk memory True is not a size"),
        ({"disk": [1]}, r"disk memory \[1\] is not a size"),
        ("16GB", "budget '16GB' is not understood .* it has the fields device, host and disk"),
    ],
)
def test_what_is_no_budget_is_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        MemoryBudget.from_settings(settings)
