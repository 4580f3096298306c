import json

import pytest

from flexgen_helm.cli import reproduce, sweep
from flexgen_helm.cli.entries import read_entries
from flexgen_helm.cli.main import main
from flexgen_helm.cli.plan import read_suite
from flexgen_helm.cli.reproduce import LENGTHS, SUITES, limited, shortened
from flexgen_helm.cli.sweep import deployments
from flexgen_helm.specs.shipped import scenarios_dir
from flexgen_helm.staging.layouts import LAYOUTS, NEED_NOTHING, scenario_of_entry

CONFS = sorted(scenarios_dir().glob("*.conf"))


@pytest.fixture
def ran(monkeypatch):
    """Arguments HELM would have been run with."""
    calls = []

    def note(arguments, *, log):
        calls.append(arguments)

    monkeypatch.setattr(sweep, "helm_run", note)
    monkeypatch.setattr(reproduce, "helm_run", note)
    return calls


@pytest.mark.parametrize("conf", CONFS, ids=[conf.stem for conf in CONFS])
def test_scenarios_can_be_staged_or_need_nothing(conf):
    scenarios = {scenario_of_entry(entry) for entry in read_entries(conf)}
    assert scenarios <= {*LAYOUTS, *NEED_NOTHING}


def test_deployments_of_settings():
    assert deployments("opt-30b", ["none", "w4-kv4"], "float32") == [
        "flexgen/opt-30b-fp32",
        "flexgen/opt-30b-w4-kv4-fp32",
    ]
    assert deployments("flexgen/org/opt", ["w2"]) == ["flexgen/org/opt-w2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--settings", "none,w4,none"], "--settings none,w4,none names a setting twice"),
        (["--settings", "none,w4", "--reference", "w8"], "--reference w8 is not among"),
        (["--settings", "none,w5"], "weight_bits=5 is not supported"),
        (["-c", "nowhere.conf"], "--conf nowhere.conf is not there"),
        (["--device-memory", "much"], "much"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(ran, capsys, arguments, message):
    conf = str(scenarios_dir() / "offline.conf")
    assert main(["sweep", "--model", "opt-embedded", "-c", conf, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not ran


@pytest.mark.parametrize("name", SUITES.values())
def test_suites_have_the_papers_sub_scenarios_in_order(name):
    lengths = read_suite(scenarios_dir() / f"{LENGTHS}.conf")
    entries = read_entries(scenarios_dir() / f"{name}.conf")
    for scenario, entry in zip(lengths, entries, strict=True):
        assert scenario_of_entry(scenario.name) == scenario_of_entry(entry)


def test_fewer_instances():
    entry = "mmlu:subject=a,max_eval_instances=100,num_train_trials=3"
    assert limited(entry, 20) == "mmlu:subject=a,max_eval_instances=20,num_train_trials=3"
    assert limited(entry, 500) == entry
    assert limited(entry, None) == entry


def test_fewer_requests_to_plan_for():
    conf = scenarios_dir() / f"{LENGTHS}.conf"
    workload, entries = read_suite(conf), [limited(entry, 10) for entry in read_entries(conf)]
    fewer = [scenario.num_requests for scenario in shortened(workload, entries)]
    # Canonical perturbations make several of each instance, and WikiFact wants five completions.
    assert fewer == [150, 152, 86, 100, 30, 30, 30]
    assert shortened(workload, read_entries(conf)) == workload


def test_a_dummy_needs_a_tokenizer_and_a_known_size(ran, tmp_path, capsys):
    arguments = ["reproduce", "paper-7-offline", "--dummy", "-o", str(tmp_path)]
    assert main(arguments) == 2
    assert "--dummy needs a tokenizer" in capsys.readouterr().err
    assert main([*arguments, "--tokenizer", str(tmp_path), "--model", "gpt-2"]) == 2
    assert "'gpt-2' is not known" in capsys.readouterr().err
    assert not ran


def test_a_plan_for_the_machine_that_is_asked_for(capsys):
    args = reproduce.argparse.Namespace(
        model="facebook/opt-iml-30b",
        compression="w4-kv4",
        hardware="t4",
        **{f"{tier}_memory": None for tier in ("device", "host", "disk")},
    )
    plan = reproduce._plan(args, read_suite(scenarios_dir() / f"{LENGTHS}.conf"))
    assert plan.predicted_s < 4 * 3600
    args.hardware = None
    assert reproduce._plan(args, read_suite(scenarios_dir() / f"{LENGTHS}.conf")) is None
    assert "no prediction: run flexgen-helm calibrate" in capsys.readouterr().out


def test_the_papers_rows_are_known():
    assert [row["measured_minutes"] for row in reproduce._paper_rows()][-1] == 902
    assert json.dumps(reproduce._paper_rows())
