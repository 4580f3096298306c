import subprocess
import sys

import pytest

from flexgen_helm import __version__
from flexgen_helm.cli.demo import SCENARIOS, SETTINGS, run_entries
from flexgen_helm.cli.main import main
from flexgen_helm.errors import InvalidCompressionError


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    output = capsys.readouterr().out
    assert all(
        f"\n    {name}" in output
        for name in (
            *("demo", "run", "sweep", "reproduce", "stage", "tables", "compare", "register"),
            *("convert", "calibrate", "plan", "bench"),
        )
    )


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"flexgen-helm {__version__}\n"


def test_an_error_is_one_line_and_status_2(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("flexgen-helm: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("plan --hardware t4 --model opt-30b", "interrupted"),
        (
            "reproduce paper-7 --hardware t4",
            "interrupted; what was computed is kept, and the same command goes on from there",
        ),
    ],
)
def test_an_interrupt_is_one_line(command, said, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("flexgen_helm.planner.plan.plan", interrupt)
    workload = ["--workload", "10:50/2"] if command.startswith("plan") else []
    assert main([*command.split(), *workload]) == 130
    assert capsys.readouterr().err == f"flexgen-helm: {said}\n"


def test_output_that_nobody_reads_is_no_error():
    command = [sys.executable, "-m", "flexgen_helm", "plan", "--hardware", "t4"]
    command += ["--model", "facebook/opt-125m", "--workload", "10:50/2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (1, b"")


@pytest.mark.parametrize("command", ["demo", "sweep", "reproduce"])
def test_no_instances_are_refused(command, capsys):
    arguments = {"demo": [], "sweep": ["-c", "x.conf"], "reproduce": ["paper-7"]}[command]
    with pytest.raises(SystemExit, match="2"):
        main([command, *arguments, "-m", "0"])
    assert "0 is not a number from 1 on" in capsys.readouterr().err


def test_demo_entries():
    entries = run_entries(["mmlu:subject=x", "boolq"], ["none", "w4-kv4"])
    assert entries == [
        "mmlu:subject=x,model=flexgen/opt-embedded",
        "boolq:model=flexgen/opt-embedded",
        "mmlu:subject=x,model=flexgen/opt-embedded-w4-kv4",
        "boolq:model=flexgen/opt-embedded-w4-kv4",
    ]
    assert len(run_entries(SCENARIOS, SETTINGS)) == len(SCENARIOS) * len(SETTINGS)


def test_demo_refuses_unknown_settings_before_it_runs():
    with pytest.raises(InvalidCompressionError, match="weight_bits=5 is not supported"):
        run_entries(SCENARIOS, ["none", "w5"])


def test_a_failed_helm_run_is_one_line_that_names_the_log(tmp_path, monkeypatch, capsys):
    def failing_run(command, **options):
        return subprocess.CompletedProcess(command, returncode=3)

    monkeypatch.setattr(subprocess, "run", failing_run)
    assert main(["demo", "--settings", "none", "--output-path", str(tmp_path / "out")]) == 2
    log = tmp_path / "out" / "helm-run.log"
    assert f"helm-run ended with status 3: the reason is above, or at the end of {log}" in (
        capsys.readouterr().err
    )
