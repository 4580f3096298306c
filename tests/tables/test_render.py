import pytest

from flexgen_helm.tables.columns import Column, frame_of
from flexgen_helm.tables.render import format_number, markdown_table, text_table

COLUMNS = (
    Column("task", "string", "", "task"),
    Column("n", "Int64", "", "n"),
    Column("throughput", "float64", "tokens/s", "throughput"),
    Column("cache_bytes_per_token", "float64", "bytes/token", "cache"),
    Column("prefill_s", "float64", "s", "prefill"),
)


@pytest.fixture
def table():
    rows = [{"task": "a|b", "n": 12, "throughput": 4.0, "cache": 16384.0, "prefill": 0.12345}, {}]
    return frame_of(COLUMNS, rows)


def test_text(table):
    assert text_table(table, COLUMNS).splitlines() == [
        "task   n  throughput (tokens/s)  cache_bytes_per_token  prefill_s",
        "----  --  ---------------------  ---------------------  ---------",
        "a|b   12                      4                16.4 kB      0.123",
        "-      -                      -                      -          -",
    ]


def test_markdown(table):
    assert markdown_table(table, COLUMNS).splitlines() == [
        "| task | n | throughput (tokens/s) | cache_bytes_per_token | prefill_s |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a\\|b | 12 | 4 | 16.4 kB | 0.123 |",
        "| - | - | - | - | - |",
    ]


def test_a_table_without_rows_is_its_header():
    assert len(text_table(frame_of(COLUMNS, []), COLUMNS).splitlines()) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (7, "7"),
        (-0.25, "-0.25"),
        (2 / 3, "0.667"),
        (0.0123456, "0.0123"),
        (0.00001234, "1.23e-05"),
        (12.3456, "12.3"),
        (999.9, "1000"),
        (123456.7, "123457"),
    ],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text


NARROW = (
    Column("task", "string", "", "task"),
    Column("model", "string", "", "model"),
    Column("compression", "string", "", "compression"),
    Column("difference_low", "float64", "", "n"),
    Column("throughput", "float64", "tokens/s", "n"),
    Column("cache_bytes_per_token", "float64", "bytes/token", "n"),
)


def test_a_table_that_is_wider_than_a_line_comes_in_parts():
    task = "synthetic_reasoning:mode=variable_substitution"
    rows = [{"task": task, "model": "m", "compression": c, "n": 0.25} for c in ("none", "w4")]
    table = frame_of(NARROW, rows)
    assert text_table(table, NARROW, 40).splitlines() == [
        "task: synthetic_reasoning:mode=variable_substitution",
        "model: m",
        "",
        "compression  difference_  throughput",
        "                     low  (tokens/s)",
        "-----------  -----------  ----------",
        "none                0.25        0.25",
        "w4                  0.25        0.25",
        "",
        "compression  cache_",
        "             bytes_",
        "               per_",
        "              token",
        "-----------  ------",
        "none         0.25 B",
        "w4           0.25 B",
    ]
    assert text_table(table, NARROW, 200) == text_table(table, NARROW)


def test_a_part_has_one_column_at_least(table):
    parts = text_table(table, COLUMNS, 1).split("\n\n")
    assert len(parts) == len(COLUMNS) - 1
    assert all(part.startswith("task") for part in parts)


def test_long_names_are_in_lines():
    tasks = ("synthetic_reasoning:mode=pattern_match", "dyck_language_np=3")
    table = frame_of(NARROW[:1], [{"task": task} for task in tasks])
    assert text_table(table, NARROW[:1], 30).splitlines() == [
        "task",
        "-------------",
        "synthetic_",
        "reasoning:",
        "mode=pattern_",
        "match",
        "dyck_",
        "language_",
        "np=3",
    ]
