import json
import subprocess
from pathlib import Path

import pytest
from helm.benchmark.executor import ExecutorError

from flexgen_helm.adapter.failures import failure_text
from flexgen_helm.cli import helm_process
from flexgen_helm.cli.helm_process import RUN_FILES, drop_torn_files, failures_last, helm_run
from flexgen_helm.errors import CommandError, DiskFullError, TablesError


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "suite" / "mmlu:model=m"
    directory.mkdir(parents=True)
    for name in RUN_FILES:
        (directory / name).write_text(json.dumps({"name": name}))
    return directory


@pytest.mark.parametrize("content", ["", '{"name": "st'])
def test_a_half_written_file_is_deleted_and_nothing_else(run, content):
    (run / "stats.json").write_text(content)
    assert drop_torn_files(run.parent) == [run / "stats.json"]
    assert sorted(path.name for path in run.iterdir()) == sorted({*RUN_FILES} - {"stats.json"})


def test_whole_files_stay(run):
    assert drop_torn_files(run.parent) == []
    assert len(list(run.iterdir())) == len(RUN_FILES)


def test_no_suite_yet(tmp_path):
    assert drop_torn_files(tmp_path / "nowhere") == []


def test_a_failure_says_where_its_reason_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(helm_process.sys, "executable", "/bin/false")
    log = tmp_path / "logs" / "helm.log"
    with pytest.raises(
        CommandError, match=r"status 1: the reason is above, or at the end of .*helm.log"
    ):
        helm_run(["--suite", "s"], log=log)
    assert "--suite s >>" in capsys.readouterr().out
    assert log.exists()


FAILURE = "mmlu:subject=a,model=m: the disk is full: name another"


def test_reasons_of_failed_runs_are_read_from_this_calls_part_of_the_log(tmp_path, monkeypatch):
    def fail(command, *, stdout, **options):
        line = failure_text(
            "mmlu:subject=a,model=m", DiskFullError("the disk is full: name another")
        )
        stdout.write(f"2026-11-28 10:00:00,123 INFO     {line}\n")
        stdout.write("2026-11-28 10:00:00,124 INFO     } [1.0s]\n")
        return subprocess.CompletedProcess(command, returncode=1)

    monkeypatch.setattr(subprocess, "run", fail)
    for _ in range(2):
        assert helm_run([], log=tmp_path / "helm.log") == [FAILURE]


def test_failed_runs_come_last(capsys):
    again = r"1 run\(s\) failed, .*helm.log has more .*run the same command again once the reason"
    with pytest.raises(CommandError, match=again), failures_last([FAILURE], Path("helm.log")):
        print("a table")
    captured = capsys.readouterr()
    assert captured.out == "a table\n"
    assert captured.err == f"\nfailed: {FAILURE}\n"


def test_no_table_of_failed_runs_is_no_error_of_its_own():
    failed, log = pytest.raises(CommandError, match=r"1 run\(s\) failed"), Path("helm.log")
    with failed, failures_last([FAILURE], log):
        raise TablesError("no runs")
    with pytest.raises(TablesError, match="no runs"), failures_last([], log):
        raise TablesError("no runs")


def test_a_reason_is_one_line_without_the_request():
    error = ExecutorError("RuntimeError: it\n broke Request: Request(prompt='p\n')")
    assert failure_text("a:model=m", error) == "Failed run a:model=m: RuntimeError: it broke"
    assert failure_text("a:model=m", KeyError("x")) == "Failed run a:model=m: KeyError: 'x'"
