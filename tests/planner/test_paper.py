"""The FlexGen paper's own measurements, predicted with a T4's profile (see facts in scenarios)."""

import pytest

from flexgen_helm.bench.plan import ratios
from flexgen_helm.bench.plan_paper import paper_helm_rows, paper_rows


@pytest.fixture(scope="module")
def cells():
    return paper_rows()


def test_throughput_of_upstreams_policies_is_within_a_quarter(cells):
    assert len(cells) == 12
    assert {row["model"] for row in cells} == {
        "facebook/opt-6.7b",
        "facebook/opt-30b",
        "facebook/opt-175b",
    }
    for row in cells:
        assert abs(row["error"]) <= 0.25, row


def test_planned_policies_are_at_least_as_fast(cells):
    for row in cells:
        assert row["planned_over_upstream"] >= 1, row


def test_hours_of_the_seven_sub_scenarios():
    rows = paper_helm_rows()
    measured = sum(row["measured_minutes"] for row in rows)
    assert measured / 60 == pytest.approx(20.8, abs=0.05)
    predicted = sum(row["predicted_upstream_minutes"] for row in rows)
    assert abs(predicted / measured - 1) <= 0.25
    assert sum(row["planned_minutes"] for row in rows) <= 4 * 60
    assert ratios(rows)["helm_planned_hours"] <= 4
