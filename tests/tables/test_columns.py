import pandas as pd
import pytest

from flexgen_helm.tables.collect import efficiency, scenario_metrics
from flexgen_helm.tables.columns import (
    COMPARISON,
    EFFICIENCY,
    MEASURED,
    OVERALL,
    SCENARIO_METRICS,
    Column,
    frame_of,
    resolve,
)
from flexgen_helm.tables.compare import compare, compare_settings

TABLES = {
    "metrics": SCENARIO_METRICS,
    "efficiency": EFFICIENCY,
    "comparison": COMPARISON,
    "overall": OVERALL,
}


def overall(path):
    return compare(path).overall


@pytest.fixture
def everything(make_run, make_answered, make_stat, record, output):
    """A run in which every column has something to show."""
    perturbation = {"name": "typos", "robustness": True, "computed_on": "worst", "prob": 0.1}
    make_run(
        "flexgen/opt-30b-w4-kv8-g32-top10-fp32",
        stats=[
            make_stat(
                "exact_match", 0.25, split="test", sub_split="hard", perturbation=perturbation
            ),
            make_stat("exact_match_indicator", 0.5, split="test"),
            make_stat("num_instances", 4, split="test"),
        ],
        record=record,
    )
    make_run("flexgen/opt-30b", record=record)
    make_answered("flexgen/opt-30b", ["yes"] * 4, suite="answered")
    make_answered("flexgen/opt-30b-w4", ["yes", "yes", "yes", "no"], suite="answered")
    return output


@pytest.mark.parametrize("read", [scenario_metrics, efficiency, compare_settings, overall])
def test_every_source_leads_to_a_value(everything, read):
    table = read(everything)
    assert table.columns[table.isna().all()].tolist() == []


@pytest.mark.parametrize("columns", TABLES.values(), ids=TABLES)
def test_names_are_unique_and_units_stand_at_the_end_of_byte_and_second_columns(columns):
    names = [column.name for column in columns]
    assert len(set(names)) == len(names)
    assert all(column.name.endswith("_s") for column in columns if column.unit == "s")
    assert all(column.name.endswith("_bytes") for column in columns if column.unit == "bytes")


@pytest.mark.parametrize("columns", TABLES.values(), ids=TABLES)
def test_a_table_without_rows_has_all_columns_and_dtypes(columns):
    table = frame_of(columns, [])
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == {
        column.name: column.dtype for column in columns
    }


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("a.b", 1),
        ("a", {"b": 1, "zero": 0}),
        ("a.none | a.b", 1),
        ("a.zero | a.b", 0),
        ("absent.b", None),
        ("a.b.c", None),
    ],
)
def test_resolve(source, value):
    assert resolve(source, {"a": {"b": 1, "zero": 0}, "absent": None}) == value


def test_missing_cells_keep_the_dtype():
    columns = [Column("n", "Int64", "", "n"), Column("x", "float64", "", "x")]
    table = frame_of(columns, [{"n": 2**60, "x": 0.5}, {}])
    assert table["n"].tolist() == [2**60, pd.NA]
    assert table["x"].isna().tolist() == [False, True]


def test_measured_columns_exist():
    assert {column.name for column in COMPARISON} >= MEASURED
