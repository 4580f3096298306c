import json
import subprocess
import sys

import pytest

from flexgen_helm.cli.main import main
from flexgen_helm.cli.plan import spec_named
from flexgen_helm.specs.calibration import PROFILE_VARIABLE
from flexgen_helm.specs.catalog import KNOWN_MODELS
from flexgen_helm.specs.shipped import scenarios_dir
from tests.planner.machines import CPU

SUITE = str(scenarios_dir() / "paper_7.conf")


def plan(*arguments):
    return main(["plan", "--model", "facebook/opt-1.3b", *arguments])


def test_one_object_says_it_all(capsys):
    arguments = ["--hardware", "t4", "--suite", SUITE, "--compression", "w4-kv4", "--json"]
    assert plan(*arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predicted_hours"] > 0
    assert found["policy"]["weights"]["device"] <= 1
    assert len(found["per_scenario"]) == 7
    assert found["limits"]
    minutes = sum(scenario["minutes"] for scenario in found["per_scenario"])
    assert minutes / 60 == pytest.approx(found["predicted_hours"])


def test_a_plan_is_shown_as_a_table(capsys):
    assert plan("--hardware", "t4", "--workload", "100:64/8") == 0
    shown = capsys.readouterr().out
    assert "100:64/8" in shown
    assert "predicted for t4: " in shown
    assert "weights: " in shown
    assert "nothing is offloaded" in shown


def test_less_memory_is_less_than_the_machine_has(capsys):
    arguments = ["--hardware", "t4", "--workload", "100:64/8", "--json"]
    plan(*arguments)
    free = json.loads(capsys.readouterr().out)
    plan(*arguments, "--device-memory", "1GB")
    limited = json.loads(capsys.readouterr().out)
    assert not free["offloads"]
    assert limited["offloads"]
    assert limited["limit_bytes"]["device"] == 10**9
    assert limited["needed_bytes"]["device"] <= 10**9 * (1 + 1e-6)  # of the solver


def test_without_a_name_this_machine_is_meant(tmp_path, monkeypatch, capsys):
    path = tmp_path / "hardware.json"
    monkeypatch.setenv(PROFILE_VARIABLE, str(path))
    assert plan("--workload", "10:64/8") == 2
    assert "run flexgen-helm calibrate" in capsys.readouterr().err
    path.write_text(CPU.to_json())
    assert plan("--workload", "10:64/8", "--device-memory", "900MB") == 0


def test_lengths_that_are_no_text_are_one_line(tmp_path, capsys):
    (tmp_path / "suite.lengths.json").write_bytes(b"\xff\xfe")
    assert plan("--hardware", "t4", "--suite", str(tmp_path / "suite.conf")) == 2
    assert "suite.lengths.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--hardware", "abacus", "--workload", "1:2/3"],
            "or a profile that ships: name one of a100-80gb, c",
        ),
        (["--hardware", "t4", "--workload", "many"], "workload 'many' is not understood"),
        (
            ["--hardware", "t4", "--workload", "10:2049/1"],
            "have up to 2049 tokens, the model has 2048 positions: plan for shorter ones",
        ),
        (["--hardware", "t4", "--suite", "none.conf"], "none.lengths.json is not there"),
        (
            ["--hardware", "t4", "--workload", "1:2/3", "--device-memory", "1MB"],
            "no policy of this model fits",
        ),
        (["--hardware", "t4", "--workload", "1:2/3", "--model", "gpt"], "model 'gpt' is not known"),
        (
            [
                "--hardware",
                "t4",
                "--workload",
                "1:2/3",
                "--model",
                "opt-30b-w4",
                "--compression=w8",
            ],
            "--compression w8 is given, and flexgen/opt-30b-w4 says w4 already: leave one of them",
        ),
        (
            ["--hardware", "t4", "--workload", "1:2/3", "--model", "flexgen/opt-30b-bf16"],
            "computes in bfloat16, the rates of 't4' are for float16: leave out -bf16, or name",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert plan(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_directory_is_a_model_too(checkpoint, capsys):
    arguments = ["--model", str(checkpoint), "--hardware", "t4", "--workload", "10:64/8", "--json"]
    assert main(["plan", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(checkpoint)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json is no valid JSON"),
        ('{"model_type": "opt"}', "hidden_size=None in config.json is not possible"),
    ],
)
def test_a_damaged_directory_is_named(tmp_path, capsys, config, message):
    (tmp_path / "config.json").write_text(config)
    assert plan("--model", str(tmp_path), "--hardware", "t4", "--workload", "10:64/8") == 2
    assert message in capsys.readouterr().err


def test_planning_imports_no_torch():
    code = (
        "import sys; from flexgen_helm.cli.main import main;"
        "main(['plan', '--model', 'facebook/opt-1.3b', '--hardware', 't4', '--workload', '9:9/9']);"
        "assert 'cvxpy' in sys.modules; assert 'torch' not in sys.modules;"
        "assert 'transformers' not in sys.modules; assert 'helm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_readme_s_command(monkeypatch, capsys):
    root = scenarios_dir().parent
    monkeypatch.chdir(root)
    lines = (root / "README.md").read_text().splitlines()
    command = lines[lines.index("<!-- plan -->") + 2].split()
    assert command[:2] == ["flexgen-helm", "plan"]
    assert main(command[1:]) == 0
    assert "summarization_xsum_sampled" in capsys.readouterr().out


@pytest.mark.parametrize("model", KNOWN_MODELS, ids=[model.name for model in KNOWN_MODELS])
def test_every_model_with_a_name_has_a_shape(model):
    spec = spec_named(model.name)
    assert spec == spec_named(model.checkpoint)
    if model.num_parameters is not None:
        assert spec.num_parameters == pytest.approx(model.num_parameters, rel=0.06)


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        ("flexgen/opt-1.3b-w4-kv4", "w4-kv4"),
        ("flexgen/facebook/opt-350m-kv8-fp16", "kv8"),
        ("galactica-1.3b-w3-g32", "w3-g32"),
        ("flexgen/opt-embedded", "none"),
    ],
)
def test_names_are_those_of_helm_run(name, compression, capsys):
    command = ["plan", "--hardware", "t4", "--workload", "10:64/8", "--json", "--model"]
    assert main([*command, name]) == 0
    assert json.loads(capsys.readouterr().out)["compression"] == compression


def test_a_directory_with_a_setting_behind_it(checkpoint, capsys):
    command = ["plan", "--hardware", "t4", "--workload", "10:64/8", "--json", "--model"]
    assert main([*command, f"flexgen/{checkpoint}-w4"]) == 0
    assert json.loads(capsys.readouterr().out)["compression"] == "w4"


def test_what_was_fetched_from_the_hub_has_a_shape(checkpoint, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *_: str(checkpoint / "config.json")
    )
    assert spec_named("someone/opt") == spec_named(str(checkpoint))
