"""What the benchmark of predictions measures and works out; no trial takes place."""

import json
from dataclasses import replace

import pytest

from flexgen_helm.bench import plan_machine, plan_paper, plan_sweep, rates
from flexgen_helm.bench.plan import ratios
from flexgen_helm.bench.plan_machine import Configuration, Machine, machine_rows
from flexgen_helm.bench.plan_sweep import sweep_rows, swept_policies
from flexgen_helm.bench.trial import TrialRow, UniformWorkload
from flexgen_helm.cli.main import main
from tests.conftest import SHARED_DATA
from tests.planner.machines import CPU


def pretended(trial, bench, *, number):
    """A trial that takes a second for each phase, and longer with small micro-batches."""
    slow = trial.policy.get("micro_batch_tokens", 2048) < 512
    return replace(
        TrialRow.of(trial),
        prefill_s=3.0 if slow else 1.0,
        decode_s=1.0,
        memory_bytes=900,
        planned_bytes=1000,
    )


@pytest.fixture
def machine(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setattr(plan_machine, "run_trial", pretended)
    return Machine(hardware=CPU, directory=tmp_path, tokenizer=checkpoint, rounds=3)


def test_configurations_are_of_all_kinds():
    configurations = plan_machine.CONFIGURATIONS
    assert len(configurations) >= 12
    assert {c.size for c in configurations} >= {"125m", "1.3b", "6.7b"}
    assert {c.compression for c in configurations} >= {"none", "w4", "w4-kv4"}
    assert any(c.workload.new_tokens == 1 for c in configurations)
    assert any("weights" in c.policy for c in configurations)
    assert any("cache" in c.policy for c in configurations)
    assert len(list(swept_policies())) >= 50


def test_predictions_stand_beside_measurements(machine):
    rows = list(machine_rows(machine))
    assert len(rows) == len(plan_machine.CONFIGURATIONS)
    for row in rows:
        assert row["measured_prefill_s"] == 1
        predicted = row["predicted_prefill_s"] + row["predicted_decode_s"]
        assert row["error"] == pytest.approx(predicted / 2 - 1)
    found = ratios(rows)
    assert found["machine_worst_error"] == pytest.approx(
        max(abs(r["error"]) for r in rows), abs=1e-3
    )
    assert found["memory_most_planned_over_measured"] == pytest.approx(1000 / 900, abs=1e-3)


def test_a_slow_machine_runs_a_part_of_the_requests(machine):
    rows = list(machine_rows(replace(machine, part=0.01)))
    assert [row["requests"] for row in rows] == [
        max(1, round(0.01 * configuration.batch)) for configuration in plan_machine.CONFIGURATIONS
    ]


@pytest.mark.parametrize("part", ["0", "1.5", "some"])
def test_a_part_is_up_to_the_whole(part, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "plan", "--part", part])
    assert f"'{part}' is not a part" in capsys.readouterr().err


def test_the_planned_policy_stands_among_others(machine):
    configuration = Configuration(
        size="125m", compression="none", workload=UniformWorkload(64, 4), batch=8, policy={}
    )
    rows = list(sweep_rows(configuration, machine, number=1))
    assert [row["kind"] for row in rows].count("planned") == 1
    assert len(rows) == 1 + len(list(swept_policies()))
    beside = [row for row in rows if row["planned_over_this"] is not None]
    assert len(beside) == 1 + plan_sweep.FINALISTS
    assert {row["times"] for row in beside} == {plan_sweep.FINAL_ROUNDS}
    assert all(row["micro_batch_tokens"] >= 512 for row in beside), "others are slow"
    assert {row["times"] for row in rows if row not in beside} == {1, 2, 3}
    assert ratios(rows) == {"sweep_opt-125m_none_planned_over_best": 1.0}


def test_a_planned_policy_that_is_slower_is_found_so(machine, monkeypatch):
    def measured(trial, bench, *, number):
        row = pretended(trial, bench, number=number)
        return replace(row, prefill_s=1.5) if number == 1 else row

    monkeypatch.setattr(plan_machine, "run_trial", measured)
    configuration = Configuration(
        size="125m", compression="none", workload=UniformWorkload(64, 4), batch=8, policy={}
    )
    rows = list(sweep_rows(configuration, machine, number=1))
    assert ratios(rows) == {"sweep_opt-125m_none_planned_over_best": 1.25}


def test_the_best_of_a_sweep_is_not_best_by_chance(machine, monkeypatch):
    """The first time a policy is lucky; measured again it is as slow as all others."""
    lucky = []

    def measured(trial, bench, *, number):
        row = pretended(trial, bench, number=number)
        if trial.policy.get("micro_batch_size") == 32 and len(lucky) < 3:
            lucky.append(number)
            return replace(row, prefill_s=0.9)
        return row

    monkeypatch.setattr(plan_machine, "run_trial", measured)
    configuration = Configuration(
        size="125m", compression="none", workload=UniformWorkload(64, 4), batch=8, policy={}
    )
    rows = list(sweep_rows(configuration, replace(machine, rounds=1), number=1))
    assert len(lucky) == 3
    assert ratios(rows) == {"sweep_opt-125m_none_planned_over_best": 1.0}


def test_rates_are_measured_all_along_unless_they_are_given(machine, monkeypatch):
    asked = []

    def answer(module, request, bench, *, name, limit_s=None):
        asked.append(module)
        return json.loads(CPU.to_json())

    monkeypatch.setattr(rates, "ask", answer)
    assert machine.rates() == CPU
    assert not asked
    assert replace(machine, hardware=None).rates() == CPU
    assert asked == ["flexgen_helm.bench.rates"]


def test_the_command_reports_the_paper(monkeypatch, capsys):
    cells = [{"measured_tokens_per_s": 1.0, "error": -0.2, "planned_over_upstream": 1.5}]
    monkeypatch.setattr(plan_paper, "paper_rows", lambda: cells)
    monkeypatch.setattr(plan_paper, "paper_helm_rows", list)
    assert main(["bench", "plan", "--stages", "paper", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["ratios"] == {
        "paper_worst_error": 0.2,
        "paper_least_planned_over_upstream": 1.5,
    }


def test_the_command_measures_the_machine(machine, monkeypatch, tmp_path, capsys):
    if not (SHARED_DATA / "opt-tokenizer").is_dir():
        pytest.skip("OPT's tokenizer is not here")
    monkeypatch.setattr(plan_machine, "CONFIGURATIONS", plan_machine.CONFIGURATIONS[:1])
    profile = tmp_path / "hardware.json"
    profile.write_text(CPU.to_json())
    arguments = [
        "--hardware",
        str(profile),
        "--work-dir",
        str(tmp_path),
        "--data",
        str(SHARED_DATA),
    ]
    assert main(["bench", "plan", "--stages", "machine", "--json", *arguments]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(report["rows"]) == 1
    assert report["ratios"]["machine_median_error"] == report["ratios"]["machine_worst_error"]
