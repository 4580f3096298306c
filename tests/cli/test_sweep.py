import argparse
import re

import pytest

from flexgen_helm.cli import helm_process
from flexgen_helm.cli.entries import read_entries
from flexgen_helm.cli.main import main
from flexgen_helm.cli.plan import read_suite
from flexgen_helm.cli.reproduce import SUITES, limited, plan_for, shortened
from flexgen_helm.cli.sweep import deployments
from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.shipped import flexgen_paper, scenarios_dir
from flexgen_helm.staging.layouts import LAYOUTS, NEED_NOTHING, scenario_of_entry
from flexgen_helm.tables.run_directories import RUN_FILES

CONFS = sorted(scenarios_dir().glob("*.conf"))
OFFLINE = str(scenarios_dir() / "offline.conf")


@pytest.fixture
def ran(monkeypatch):
    """Arguments HELM would have been run with."""
    calls = []

    def note(arguments, *, log):
        calls.append(arguments)

    monkeypatch.setattr(helm_process, "helm_run", note)
    return calls


@pytest.fixture
def completed(monkeypatch):
    """The same, and HELM leaves a complete run behind, if not one to tabulate."""
    calls = []

    def note(arguments, *, log):
        calls.append(arguments)
        run = log.parent / "runs" / log.stem / "mmlu:model=m"
        run.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:
            (run / name).write_text("{}")

    monkeypatch.setattr(helm_process, "helm_run", note)
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
        (["--settings", "w4-g64,w4"], "names a setting twice"),
        (["--settings", "none,w4", "--reference", "w8"], "--reference w8 is not among"),
        (["--settings", "none,w5"], "weight_bits=5 is not supported"),
        (["-c", "nowhere.conf"], "nowhere.conf is not there"),
        (["--device-memory", "much"], "much"),
        (["--model", "/data/opt-w4"], "'flexgen//data/opt-w4' means checkpoint '/data/opt' with a"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(ran, tmp_path, capsys, arguments, message):
    command = ["sweep", "--model", "opt-embedded", "-c", OFFLINE, "-o", str(tmp_path / "out")]
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not ran
    assert not (tmp_path / "out").exists()


def test_entries_with_models_are_refused(ran, tmp_path, capsys):
    conf = tmp_path / "some.conf"
    conf.write_text('entries: [{description: "mmlu:subject=a,model=x/y", priority: 1}]')
    assert main(["sweep", "--model", "opt-embedded", "-c", str(conf)]) == 2
    assert "names models (mmlu:subject=a,model=x/y): leave them out" in capsys.readouterr().err
    assert not ran


def test_a_sweep_goes_on_with_the_size_it_was_begun_with(completed, tmp_path, capsys):
    command = ["sweep", "--model", "opt-embedded", "-c", OFFLINE, "-o", str(tmp_path)]
    main([*command, "-m", "20"])
    main([*command, "-m", "20"])
    assert len(completed) == 2
    capsys.readouterr()
    assert main([*command, "-m", "30"]) == 2
    assert "suite offline was begun with" in capsys.readouterr().err
    assert len(completed) == 2


def test_a_sweep_without_a_run_leaves_no_size(ran, tmp_path):
    command = ["sweep", "--model", "opt-embedded", "-c", OFFLINE, "-o", str(tmp_path)]
    main([*command, "-m", "20"])
    assert len(ran) == 1
    assert not list(tmp_path.rglob("size.json"))


def test_the_size_of_a_sweep_that_was_killed_before_its_first_run_binds_nobody(ran, tmp_path):
    command = ["sweep", "--model", "opt-embedded", "-c", OFFLINE, "-o", str(tmp_path)]
    file = tmp_path / "tables" / "offline" / "size.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"max_eval_instances": 20, "num_train_trials": null}')
    main([*command, "-m", "30"])
    assert len(ran) == 1


def test_a_damaged_note_of_the_size_is_named(completed, tmp_path, capsys):
    command = ["sweep", "--model", "opt-embedded", "-c", OFFLINE, "-o", str(tmp_path)]
    main([*command, "-m", "20"])
    file = tmp_path / "tables" / "offline" / "size.json"
    file.write_text(file.read_text()[:10])
    capsys.readouterr()
    assert main([*command, "-m", "20"]) == 2
    assert re.search(
        r"size.json is damaged .* delete it if that was \{'max_eval_instances': 20, 'num_train",
        capsys.readouterr().err,
    )
    assert len(completed) == 1


def test_trials_are_the_entries_own_unless_named(ran, tmp_path):
    command = ["sweep", "--model", "opt-embedded", "-c", OFFLINE, "-o", str(tmp_path)]
    main([*command, "--suite", "a"])
    main([*command, "--suite", "b", "-t", "2"])
    assert ["--num-train-trials" in arguments for arguments in ran] == [False, True]


@pytest.mark.parametrize("trials", ["0", "-1"])
def test_there_is_no_sweep_without_trials(ran, tmp_path, capsys, trials):
    command = ["sweep", "--model", "opt-embedded", "-c", OFFLINE, "-o", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*command, "-t", trials])
    assert f"--num-train-trials: {trials} is not a number from 1 on" in capsys.readouterr().err
    assert not ran


def test_an_output_path_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["sweep", "--model", "opt-embedded", "-c", OFFLINE, "-o", str(tmp_path / "file")]
    assert main(command) == 2
    assert "choose another --output-path" in capsys.readouterr().err


@pytest.mark.parametrize("name", SUITES.values())
def test_suites_have_the_papers_sub_scenarios_in_order(name):
    conf = scenarios_dir() / f"{name}.conf"
    rows = flexgen_paper()["helm"]["rows"]
    for scenario, entry, row in zip(read_suite(conf), read_entries(conf), rows, strict=True):
        assert scenario_of_entry(scenario.name) == scenario_of_entry(entry)
        assert scenario_of_entry(row["scenario"]) == scenario_of_entry(entry)
        arguments = scenario.name.partition(":")[2].split(",")
        assert all(part in entry or part == "temperature=0.3" for part in arguments)


def test_offline_requests_are_instances_times_trials_times_completions():
    conf = scenarios_dir() / "paper_7_offline.conf"
    for scenario, entry in zip(read_suite(conf), read_entries(conf), strict=True):
        completions = 5 if entry.startswith("wikifact") else 1
        instances = int(entry.partition("max_eval_instances=")[2].partition(",")[0])
        assert scenario.num_requests == instances * 3 * completions


def test_fewer_instances():
    entry = "mmlu:subject=a,max_eval_instances=100,num_train_trials=3"
    assert limited(entry, 20) == "mmlu:subject=a,max_eval_instances=20,num_train_trials=3"
    assert limited(entry, 500) == entry
    assert limited(entry, None) == entry


def test_fewer_requests_to_plan_for():
    conf = scenarios_dir() / "paper_7.conf"
    workload, full = read_suite(conf), read_entries(conf)
    fewer = shortened(workload, full, [limited(entry, 10) for entry in full])
    # Canonical perturbations make several of each instance, and WikiFact wants five completions.
    assert [s.num_requests for s in fewer] == [150, 152, 86, 100, 30, 30, 30]
    assert shortened(workload, full, full) == workload


def test_a_dummy_needs_a_tokenizer_and_a_known_size(ran, tmp_path, capsys):
    arguments = ["reproduce", "paper-7-offline", "--dummy", "-o", str(tmp_path)]
    assert main(arguments) == 2
    assert "--dummy needs a tokenizer" in capsys.readouterr().err
    assert main([*arguments, "--tokenizer", str(tmp_path), "--model", "gpt-2"]) == 2
    assert "'gpt-2' is not known" in capsys.readouterr().err
    assert not ran


@pytest.fixture
def asked():
    """What a plan is asked for with."""
    memory = {f"{tier}_memory": None for tier in ("device", "host", "disk")}
    return argparse.Namespace(
        model="facebook/opt-iml-30b", compression="w4-kv4", hardware="t4", **memory
    )


def test_a_plan_for_the_machine_that_is_asked_for(asked):
    workload = read_suite(scenarios_dir() / "paper_7.conf")
    assert plan_for(asked, workload).predicted_s < 4 * 3600


def test_no_plan_is_needed_where_no_machine_was_named(asked, capsys):
    workload = read_suite(scenarios_dir() / "paper_7.conf")
    asked.model = "someone/opt"
    with pytest.raises(InvalidSettingError, match=r"'someone/opt' is not known"):
        plan_for(asked, workload)
    asked.hardware = None
    assert plan_for(asked, workload) is None
    assert capsys.readouterr().out.startswith("no prediction: ")
