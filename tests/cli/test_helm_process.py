import json

import pytest

from flexgen_helm.cli import helm_process
from flexgen_helm.cli.helm_process import RUN_FILES, drop_torn_files, helm_run
from flexgen_helm.errors import CommandError


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
    with pytest.raises(CommandError, match=r"status 1: the reason is at the end of .*helm.log"):
        helm_run(["--suite", "s"], log=log)
    assert "--suite s >>" in capsys.readouterr().out
    assert log.exists()
