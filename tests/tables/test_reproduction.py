import pandas as pd
import pytest

from flexgen_helm.tables.collect import efficiency
from flexgen_helm.tables.reproduction import REPRODUCTION, is_of, reproduction

PAPER = [
    {"scenario": "wikifact:k=5,subject=plaintiff", "num_requests": 288, "measured_minutes": 10},
    {
        "scenario": "summarization_xsum_sampled:temperature=0.3",
        "num_requests": 1568,
        "measured_minutes": 902,
    },
]


@pytest.mark.parametrize(
    ("run", "entry", "same"),
    [
        ("wikifact:k=5,subject=plaintiff,model=m,max_eval_instances=96", PAPER[0], True),
        ("wikifact:k=5,subject=instance_of,model=m", PAPER[0], False),
        ("mmlu:subject=plaintiff,model=m", PAPER[0], False),
        ("summarization_xsum_rouge:model=m", PAPER[1], True),
        ("summarization_xsum_sampled:temperature=0.3,model=m", PAPER[1], True),
    ],
)
def test_runs_of_a_sub_scenario(run, entry, same):
    assert is_of(run, entry["scenario"]) == same


def test_ours_beside_the_papers(make_run, record, output):
    make_run(name="wikifact:k=5,subject=plaintiff,model={model}", record=record)
    table = reproduction(efficiency(output), PAPER, None)
    assert table.columns.tolist() == [column.name for column in REPRODUCTION]
    row, other = table.iloc[0], table.iloc[1]
    assert (row["requests"], row["minutes"]) == (4, 3 / 60)
    assert row["request_s"] == 0.75
    assert row["paper_request_s"] == pytest.approx(600 / 288)
    assert pd.isna(other["minutes"])
    assert other["paper_minutes"] == 902
