"""`reproduce` on runs that a made-up HELM leaves behind."""

import json
import shutil

import pandas as pd
import pytest

from flexgen_helm.cli import helm_process
from flexgen_helm.cli.main import main

MMLU = "mmlu:subject=us_foreign_policy,method=multiple_choice_joint,model={model}"


@pytest.fixture
def helm(monkeypatch, make_run, record, output, tmp_path):
    """Leaves the run of one sub-scenario, of this call and of one with other instances."""
    calls = []

    def run(arguments, *, log):
        calls.append(arguments)
        for instances in (20, 100):
            name = f"{MMLU},max_eval_instances={instances},num_train_trials=3"
            make_run(
                "flexgen/opt-iml-30b-w4-kv4", suite="paper_7_offline", name=name, record=record
            )
        shutil.move(output / "runs", tmp_path / "out" / "runs")

    monkeypatch.setattr(helm_process, "helm_run", run)
    (tmp_path / "out").mkdir()
    return calls


def test_minutes_beside_the_papers_and_what_they_hold_for(helm, tmp_path, capsys):
    command = ["reproduce", "paper-7-offline", "--model", "flexgen/opt-iml-30b", "-m", "20"]
    out = tmp_path / "out"
    assert main([*command, "--hardware", "t4", "-o", str(out)]) == 0
    [arguments] = helm
    assert "mmlu:subject=us_foreign_policy,max_eval_instances=20,num_train_trials=3" in arguments
    assert arguments[arguments.index("--models-to-run") + 1] == "flexgen/opt-iml-30b-w4-kv4"
    table = pd.read_csv(out / "tables" / "paper_7_offline" / "reproduction.csv")
    assert table["minutes"].notna().sum() == 1
    row = table[table["minutes"].notna()].iloc[0]
    assert "max_eval_instances=20" in row["run"]
    assert (row["minutes"], row["paper_minutes"]) == (3 / 60, 33)
    assert table["predicted_minutes"].notna().all()
    conditions = json.loads((out / "tables" / "paper_7_offline" / "conditions.json").read_text())
    assert conditions["predicted_for"] == "t4"
    assert conditions["plan"]["predicted_hours"] > 0
    assert "paper_minutes" in capsys.readouterr().out
