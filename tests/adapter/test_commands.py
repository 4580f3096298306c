"""`flexgen-helm register` and `flexgen-helm run`."""

import argparse
import re
import subprocess
import sys

import pytest
import yaml
from helm.benchmark.runner import RunnerError

from flexgen_helm.adapter.engine_process import ENGINE_PROCESS
from flexgen_helm.cli.main import main
from flexgen_helm.cli.register import add_register_parser, write_registrations
from flexgen_helm.cli.run import add_run_parser, fast_yaml, helm_command
from flexgen_helm.errors import DeploymentError

LOAD = """
import sys, json
from helm.benchmark.config_registry import register_configs_from_directory
from helm.benchmark.model_deployment_registry import ALL_MODEL_DEPLOYMENTS
from helm.benchmark.model_metadata_registry import ALL_MODELS_METADATA
from helm.benchmark.tokenizer_config_registry import ALL_TOKENIZER_CONFIGS
{load}
for values in (ALL_MODEL_DEPLOYMENTS, ALL_MODELS_METADATA, ALL_TOKENIZER_CONFIGS):
    print(*sorted(map(repr, values)), sep="\\n")
"""


def commands():
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    add_register_parser(subparsers)
    add_run_parser(subparsers)
    return parser


def registered_by(load):
    return subprocess.run(
        [sys.executable, "-c", LOAD.format(load=load)], check=True, capture_output=True, text=True
    ).stdout


def entries(path, section):
    return {entry["name"]: entry for entry in yaml.safe_load(path.read_text())[section]}


def test_helm_reads_what_the_plugin_registers(tmp_path, capsys):
    args = commands().parse_args(["register", "--local-path", str(tmp_path)])
    assert args.run(args) == 0
    assert "model_deployments.yaml: 450 entries written" in capsys.readouterr().out
    from_files = registered_by(f"register_configs_from_directory({str(tmp_path)!r})")
    assert "flexgen/opt-66b-w3-kv2" in from_files
    assert from_files == registered_by("import flexgen_helm.plugin")


def test_writing_again_changes_nothing(tmp_path):
    write_registrations(tmp_path, ["flexgen/opt-30b"])
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    assert set(write_registrations(tmp_path, ["flexgen/opt-30b"]).values()) == {0}
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before


def test_entries_of_others_and_edits_are_kept(tmp_path):
    path = tmp_path / "model_deployments.yaml"
    other = {"name": "other/model", "client_spec": {"class_name": "other.Client"}}
    path.write_text(yaml.safe_dump({"model_deployments": [other]}))
    write_registrations(tmp_path, ["flexgen/opt-30b"])
    content = yaml.safe_load(path.read_text())
    content["model_deployments"][1]["client_spec"]["args"]["device"] = "cuda"
    path.write_text(yaml.safe_dump(content))

    write_registrations(tmp_path, ["flexgen/opt-30b", "flexgen/someone/opt-w4"])
    written = entries(path, "model_deployments")
    assert list(written) == ["other/model", "flexgen/opt-30b", "flexgen/someone/opt-w4"]
    assert written["other/model"] == other
    assert written["flexgen/opt-30b"]["client_spec"]["args"]["device"] == "cuda"

    write_registrations(tmp_path, ["flexgen/opt-30b"], overwrite=True)
    written = entries(path, "model_deployments")
    assert "device" not in written["flexgen/opt-30b"]["client_spec"]["args"]


def test_only_chosen_models_are_written(tmp_path):
    args = commands().parse_args(
        ["register", "--local-path", str(tmp_path), "--models", "flexgen/opt-30b-w4-fp32"]
    )
    args.run(args)
    assert list(entries(tmp_path / "model_metadata.yaml", "models")) == ["flexgen/opt-30b-w4-fp32"]
    assert list(entries(tmp_path / "tokenizer_configs.yaml", "tokenizer_configs")) == [
        "flexgen/opt"
    ]


def test_a_name_that_means_nothing_writes_nothing(tmp_path):
    with pytest.raises(DeploymentError, match="'opt-31b' is neither a known model"):
        write_registrations(tmp_path / "prod_env", ["flexgen/opt-31b"])
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    path = tmp_path / "model_metadata.yaml"
    path.write_text("- a list\n")
    with pytest.raises(DeploymentError, match="has no list 'models', so it is not HELM's"):
        write_registrations(tmp_path, ["flexgen/opt-30b"])
    assert path.read_text() == "- a list\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "model_metadata.yaml cannot be read .*: correct it, move it away, or choose"),
        ("models: [{nam: x}]", r"has an entry without a name \(\{'nam': 'x'\}\): correct it"),
        ("models: [x]", r"has an entry without a name \(x\)"),
    ],
)
def test_a_damaged_file_is_left_alone(tmp_path, capsys, text, message):
    path = tmp_path / "model_metadata.yaml"
    path.write_text(text)
    arguments = ["--local-path", str(tmp_path), "--models", "flexgen/opt-30b"]
    assert main(["register", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert path.read_text() == text


def test_a_local_path_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["--local-path", str(tmp_path / "file"), "--models", "flexgen/opt-30b"]
    assert main(["register", *arguments]) == 2
    assert "cannot be written (File exists): choose another --local-path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], ["helm-run", "--runner-class-name", "flexgen_helm.FlexGenRunner"]),
        (["--runner-class-name", "x.Y"], ["helm-run", "--runner-class-name", "x.Y"]),
        (["--runner-class-name=x.Y"], ["helm-run", "--runner-class-name=x.Y"]),
    ],
)
def test_our_runner_is_the_default(arguments, command):
    assert helm_command(arguments) == command


def test_arguments_reach_helm_untouched(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("helm.benchmark.run.main", lambda: seen.append(sys.argv))
    given = ["--suite", "s", "-m", "5", "-r", "a:model=b,c=d e", "--dry-run", "-h"]
    args = commands().parse_args(["run", *given])
    argv = sys.argv
    assert args.run(args) == 0
    [command] = seen
    assert command[3:] == given
    assert sys.argv is argv
    assert "Equivalent to: helm-run --runner-class-name" in capsys.readouterr().out
    assert "'a:model=b,c=d e'" in " ".join(map(repr, command))


def test_help_is_ours_and_below_it_helms(capsys):
    args = commands().parse_args(["run", "--help"])
    with pytest.raises(SystemExit) as stop:
        args.run(args)
    assert stop.value.code == 0
    ours, helms = capsys.readouterr().out.split("usage: helm-run")
    assert ours.startswith("usage: flexgen-helm run [our arguments] [arguments of helm-run]")
    flags = ("--device-memory", "--host-memory", "--disk-memory", "--offload-dir")
    assert all(flag in ours and flag not in helms for flag in flags)
    assert "--max-eval-instances" in helms


def test_failed_runs_are_an_exit_code(monkeypatch, capsys):
    def fail():
        raise RunnerError('Failed runs: ["a"]')

    monkeypatch.setattr("helm.benchmark.run.main", fail)
    args = commands().parse_args(["run"])
    assert args.run(args) == 1
    assert 'flexgen-helm run: Failed runs: ["a"]' in capsys.readouterr().err


def test_torch_is_on_its_way_before_helm_is_imported(monkeypatch):
    order = []
    monkeypatch.setattr(ENGINE_PROCESS, "start", lambda: order.append("start"))
    monkeypatch.setattr("helm.benchmark.run.main", lambda: order.append("helm"))
    args = commands().parse_args(["run", "-r", "a:model=b"])
    args.run(args)
    assert order == ["start", "helm"]


def test_yaml_is_read_by_libyaml_for_a_while(monkeypatch):
    text = "[1, 2.5, a: {b: null}, 2020-01-01]"
    expected, loader = yaml.safe_load(text), yaml.SafeLoader
    with fast_yaml():
        assert yaml.SafeLoader is yaml.CSafeLoader
        assert yaml.safe_load(text) == expected
    assert yaml.SafeLoader is loader
    monkeypatch.delattr(yaml, "CSafeLoader")
    with fast_yaml():
        assert yaml.SafeLoader is loader
