import sys
from types import SimpleNamespace

from flexgen_helm.adapter.early_imports import import_metrics
from flexgen_helm.adapter.random_state import RandomState

MODULE = "helm.benchmark.metrics.dry_run_metrics"


def run_with(*names):
    return SimpleNamespace(metric_specs=[SimpleNamespace(class_name=name) for name in names])


def test_metrics_are_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    import_metrics([run_with("no.such.Metric", f"{MODULE}.DryRunMetric")])
    assert MODULE in sys.modules


def test_importing_draws_no_random_numbers(monkeypatch, tmp_path):
    tmp_path.joinpath("drawing_metric.py").write_text(
        "import random\nrandom.random()\nMetric = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    state = RandomState.current()
    import_metrics([run_with("drawing_metric.Metric")])
    assert "drawing_metric" in sys.modules
    assert RandomState.current() == state
