import argparse
import subprocess
import sys

import pandas as pd
import pytest

from flexgen_helm.cli.main import main
from flexgen_helm.cli.tables import (
    COMPARISON_NAMES,
    COST_NAMES,
    add_compare_parser,
    add_tables_parser,
)
from flexgen_helm.tables.columns import COMPARISON, EFFICIENCY


@pytest.fixture
def run_cli():
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    add_tables_parser(subparsers)
    add_compare_parser(subparsers)

    def run(*arguments):
        args = parser.parse_args([str(argument) for argument in arguments])
        return args.run(args)

    return run


@pytest.fixture
def runs(make_settings, output):
    make_settings({"": 0.75, "-w4": 0.5})
    return output


def test_shown_columns_exist():
    assert {*COST_NAMES} <= {column.name for column in EFFICIENCY}
    assert {*COMPARISON_NAMES} <= {column.name for column in COMPARISON}


def test_tables_are_written_and_costs_printed(run_cli, runs, tmp_path, capsys):
    assert run_cli("tables", runs, "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["task", "model", "compression", "dtype"]
    assert [line.split()[2] for line in lines[2:4]] == ["none", "w4"]
    assert lines[-1] == f"wrote {tmp_path / 'out' / 'efficiency.csv'}"
    assert len(pd.read_csv(tmp_path / "out" / "efficiency.csv")) == 2


def test_compare_prints_differences(run_cli, runs, capsys):
    assert run_cli("compare", runs) == 0
    header, _, reference, compressed = capsys.readouterr().out.splitlines()
    assert "suite" not in header
    assert reference.split()[5:7] == ["0.75", "0"]
    assert compressed.split()[5:7] == ["0.5", "-0.25"]


def test_the_suite_is_shown_where_there_are_several(run_cli, runs, make_run, capsys):
    make_run(suite="other")
    run_cli("compare", runs)
    assert capsys.readouterr().out.startswith("suite")


def test_compare_as_markdown_with_a_metric_and_a_file(run_cli, runs, tmp_path, capsys):
    file = tmp_path / "compare.csv"
    assert run_cli("compare", runs, "--metric", "num_instances", "--markdown", "--csv", file) == 0
    assert "| num_instances | 4 | 4 | 0 |" in capsys.readouterr().out
    assert pd.read_csv(file).columns.tolist() == [column.name for column in COMPARISON]


def test_skipped_runs_are_one_line_on_stderr(runs, make_run, capsys):
    (make_run("a/m") / "stats.json").unlink()
    assert main(["compare", str(runs)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flexgen-helm: warning: 1 incomplete run(s) skipped")


def test_imports_stay_light():
    code = "import sys, flexgen_helm.cli.tables; assert not {'pandas', 'torch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys, flexgen_helm.tables.write, flexgen_helm.tables.compare;"
        " assert not {'torch', 'helm'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tables_fit_the_terminal(runs, monkeypatch, capsys):
    assert main(["compare", str(runs)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) > 80
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.split()[:1] == ["w4"] for line in lines) > 1
