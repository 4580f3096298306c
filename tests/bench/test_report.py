import json

from flexgen_helm.bench.report import Report

REPORT = Report(
    ratios={"natural_wall_time": 8.25},
    conditions={"cpu": "a CPU", "commit": None, "quiet": True},
    rows=[
        {"client": "ours", "wall_s": 2.0, "memory_bytes": 1234567},
        {"client": "theirs", "wall_s": 16.5, "memory_bytes": None},
        {"suite": "natural", "scores_equal": False},
    ],
)


def test_json_is_one_line_with_everything():
    text = REPORT.to_json()
    assert "\n" not in text
    assert json.loads(text) == {
        "ratios": {"natural_wall_time": 8.25},
        "conditions": {"cpu": "a CPU", "commit": None, "quiet": True},
        "rows": [dict(row) for row in REPORT.rows],
    }


def test_text_has_a_table_for_each_kind_of_row():
    assert REPORT.to_text().splitlines() == [
        "cpu: a CPU",
        "commit: -",
        "quiet: yes",
        "",
        "client  wall_s  memory_bytes",
        "------  ------  ------------",
        "ours         2       1.23 MB",
        "theirs    16.5             -",
        "",
        "suite    scores_equal",
        "-------  ------------",
        "natural  no",
        "",
        "natural_wall_time: 8.25x",
    ]


def test_a_report_without_rows_is_its_conditions():
    assert Report(ratios={}, conditions={"cores": 2}, rows=[]).to_text() == "cores: 2"


def test_what_matters_is_the_last_table_and_the_ratios():
    assert REPORT.to_short_text().splitlines() == [
        "suite    scores_equal",
        "-------  ------------",
        "natural  no",
        "",
        "natural_wall_time: 8.25x",
    ]
    assert Report(ratios={}, conditions={"cores": 2}, rows=[]).to_short_text() == ""
