import subprocess

import pytest

from flexgen_helm.cli.main import main
from flexgen_helm.specs.shipped import scenarios_dir
from flexgen_helm.tables.run_directories import RUN_FILES

OFFLINE = str(scenarios_dir() / "offline.conf")


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))


def below(directory):
    return sorted(directory.rglob("*"))


def test_a_sweep_says_what_it_would_do_and_does_nothing(tmp_path, capsys):
    runs = tmp_path / "runs" / "offline"
    for pairs in (2, 3):
        run = runs / f"dyck_language_np={pairs}:model=flexgen_opt-embedded"
        run.mkdir(parents=True)
        for name in RUN_FILES:
            (run / name).write_text("{}" if pairs == 2 else "{")  # the latter was killed
    before = below(tmp_path)
    command = ["sweep", "--model", "opt-embedded", "--settings", "none,w4", "-c", OFFLINE]
    directories = ["-o", str(tmp_path), "--local-path", str(tmp_path / "prod_env")]
    assert main([*command, "-m", "20", *directories, "--dry-run"]) == 0
    assert below(tmp_path) == before
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == [
        *("task", "model", "compression", "max_instances", "train_trials", "done")
    ]
    rows = [line.split() for line in lines[: lines.index("")]]
    assert len(rows) == 2 * 8
    assert rows[0] == ["dyck_language_np=2", "opt-embedded", "none", "20", "1", "yes"]
    assert [row[-1] for row in rows[1:]] == ["no"] * 15
    said = "\n".join(lines[len(rows) :])
    assert "left to do  15 of 16 runs" in said
    assert "command     helm-run --runner-class-name flexgen_helm.FlexGenRunner" in said
    assert f"runs        {runs}\n" in said
    assert f"tables      {tmp_path / 'tables' / 'offline'}\n" in said


@pytest.mark.parametrize(
    "entry",
    ["nonsense:x=1", "dyck_language:num_parenthesis_pairs=two", "dyck_language", "mmlu:level=3"],
)
def test_entries_that_helm_does_not_know_are_one_line(tmp_path, capsys, entry):
    conf = tmp_path / "a.conf"
    conf.write_text(f'entries: [{{description: "{entry}", priority: 1}}]')
    command = ["sweep", "--model", "opt-embedded", "--settings", "none", "-c", str(conf)]
    assert main([*command, "-o", str(tmp_path), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert f"HELM makes no run of the entry '{entry}' (" in error
    assert error.endswith("): correct it, or leave it out\n")


def test_a_reproduction_says_what_it_would_take(tmp_path, capsys):
    command = ["reproduce", "paper-7-offline", "--model", "facebook/opt-1.3b", "--hardware", "t4"]
    command += ["--dummy", "-m", "5", "-o", str(tmp_path), "--dry-run"]
    assert main(command) == 0
    assert not below(tmp_path)
    said = capsys.readouterr().out
    assert "decode_minutes" in said
    assert "memory, at most: " in said
    assert "left to do  7 of 7 runs" in said
    assert "not here    data/train.jsonl, data/dev.jsonl, data/test.jsonl of wikifact: HELM" in said
