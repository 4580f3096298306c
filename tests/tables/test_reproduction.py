from dataclasses import replace

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


ENTRIES = [
    "wikifact:k=5,subject=plaintiff,max_eval_instances=96",
    "summarization_xsum_rouge:max_eval_instances=518,num_train_trials=3",
]


@pytest.mark.parametrize(
    ("run", "same"),
    [
        ("wikifact:k=5,subject=plaintiff,model=m,max_eval_instances=96", True),
        ("wikifact:k=5,subject=plaintiff,model=m,max_eval_instances=20", False),
        ("wikifact:k=5,subject=instance_of,model=m,max_eval_instances=96", False),
        ("mmlu:subject=plaintiff,model=m,max_eval_instances=96", False),
    ],
)
def test_runs_of_an_entry(run, same):
    assert is_of(run, ENTRIES[0]) == same


def test_ours_beside_the_papers(make_run, record, output):
    name = "wikifact:k=5,subject=plaintiff,model={{model}},max_eval_instances={}"
    make_run(name=name.format(20), record=replace(record, prefill_s=100.0))
    make_run(name=name.format(96), record=record)
    table = reproduction(efficiency(output), ENTRIES, PAPER, None)
    assert table.columns.tolist() == [column.name for column in REPRODUCTION]
    row, other = table.iloc[0], table.iloc[1]
    assert (row["requests"], row["minutes"]) == (4, 3 / 60)
    assert row["mean_request_s"] == 0.75
    assert row["paper_mean_request_s"] == pytest.approx(600 / 288)
    assert (row["compression"], row["policy"]) == ("none", "8x2")
    assert pd.isna(other["minutes"])
    assert other["scenario"] == "summarization_xsum_rouge"
    assert other["paper_scenario"] == "summarization_xsum_sampled:temperature=0.3"
    assert other["paper_minutes"] == 902
