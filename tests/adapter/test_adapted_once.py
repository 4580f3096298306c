"""Runs of one task share its instances and prompts; what HELM writes is as if they did not."""

import pytest
from helm.benchmark.adaptation.adapters.generation_adapter import GenerationAdapter
from helm.benchmark.scenarios.dyck_language_scenario import DyckLanguageScenario
from helm.benchmark.scenarios.synthetic_reasoning_scenario import SyntheticReasoningScenario

from tests.adapter.suites import read_runs, run_suite

DYCK = "dyck_language:num_parenthesis_pairs=3,model={model}"
SYNTHETIC = "synthetic_reasoning:mode=variable_substitution,model={model}"


@pytest.fixture
def calls(monkeypatch):
    """How often instances and prompts were made."""
    counts = {"dyck": 0, "synthetic": 0, "adapt": 0}

    def counting(name, method):
        def counted(*args, **kwargs):
            counts[name] += 1
            return method(*args, **kwargs)

        return counted

    for name, owner, method in (
        ("dyck", DyckLanguageScenario, "get_instances"),
        ("synthetic", SyntheticReasoningScenario, "get_instances"),
        ("adapt", GenerationAdapter, "adapt"),
    ):
        monkeypatch.setattr(owner, method, counting(name, getattr(owner, method)))
    return counts


def entries(*models):
    return [entry.format(model=model) for model in models for entry in (DYCK, SYNTHETIC)]


def test_settings_share_what_is_asked(tmp_path, deploy, watch, calls):
    models = [deploy(), deploy("-w4"), deploy("-w4-kv4")]
    run_suite(tmp_path, entries(*models))
    # The very first run begins with other random numbers than those of its task after it.
    assert calls == {"dyck": 2, "synthetic": 1, "adapt": 2}
    assert [len(batch) for batch in watch.batches] == [8, 8, 8]


def test_files_are_those_of_the_stock_runner(tmp_path, deploy, watch):
    models = [deploy(), deploy("-w4"), deploy("-w8")]
    ours = read_runs(run_suite(tmp_path / "ours", entries(*models)))
    stock = read_runs(run_suite(tmp_path / "stock", entries(*models), runner=None))
    assert ours == stock


def test_other_tasks_are_not_shared(tmp_path, deploy, watch, calls):
    model, other = deploy(), deploy("-w4")
    few = DYCK.format(model=model)
    more = DYCK.format(model=other) + ",max_train_instances=2"
    run_suite(tmp_path, [few, more])
    assert calls["dyck"] == 2
    assert calls["adapt"] == 2


def test_helm_is_left_as_it_was(tmp_path, deploy, watch):
    from helm.benchmark import runner as helm_runner
    from helm.benchmark.adaptation.adapters.adapter_factory import AdapterFactory
    from helm.benchmark.data_preprocessor import DataPreprocessor
    from helm.benchmark.scenarios.scenario import create_scenario

    run_suite(tmp_path, entries(deploy(), deploy("-w4")))
    assert helm_runner.AdapterFactory is AdapterFactory
    assert helm_runner.DataPreprocessor is DataPreprocessor
    assert helm_runner.create_scenario is create_scenario
