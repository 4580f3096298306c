"""The installed command, as the README calls it, on a few instances."""

import json
from importlib import resources

import pytest

import flexgen_helm.specs.deployment as deployment_names
from flexgen_helm import compare_settings, efficiency
from tests.end_to_end.commands import run

SETTINGS = ["none", "w8-kv8", "w4-kv4", "w2-kv2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Directory the demo ran in, and what it printed."""
    directory = tmp_path_factory.mktemp("demo")
    return directory, run(directory, "flexgen-helm", "demo", "-m", "10", "--settings", *SETTINGS)


def test_prints_command_progress_and_table(demo):
    directory, finished = demo
    lines = finished.stdout.splitlines()
    assert lines[0].startswith("$ helm-run --runner-class-name flexgen_helm.FlexGenRunner")
    assert f"({len(SETTINGS)} of {len(SETTINGS)}): 100%" in finished.stderr
    for setting in SETTINGS:
        rows = [line for line in lines if f" {setting} " in line]
        assert len(rows) == 3, f"one row per scenario and one over both for {setting}"
    comparison = compare_settings(directory / "demo_output")
    needed = ["score", "throughput", "weight_bytes", "cache_bytes_per_token"]
    assert comparison[needed].notna().all(axis=None)


def test_smaller_settings_take_fewer_bytes(demo):
    costs = efficiency(demo[0] / "demo_output").set_index("compression")
    for column in ("weight_bytes", "cache_bytes_per_token"):
        sizes = [costs.loc[setting, column].max() for setting in SETTINGS]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == len(SETTINGS)


def test_again_computes_nothing_and_writes_the_same_tables(demo):
    directory, _ = demo
    tables = directory / "demo_output" / "tables"
    before = {path.name: path.read_bytes() for path in tables.iterdir()}
    assert len(before) == 4
    run(directory, "flexgen-helm", "demo", "-m", "10", "--settings", *SETTINGS)
    log = (directory / "demo_output" / "helm-run.log").read_text()
    assert log.count(" 0 of them to compute") == len(SETTINGS)
    assert {path.name: path.read_bytes() for path in tables.iterdir()} == before


def test_helm_summarize_shows_every_setting(demo):
    directory, _ = demo
    names = [
        f"{deployment_names.PREFIX}opt-embedded{'' if s == 'none' else '-' + s}" for s in SETTINGS
    ]
    local_path = "demo_output/prod_env"
    run(directory, "flexgen-helm", "register", "--local-path", local_path, "--models", *names)
    schema = str(resources.files("helm.benchmark.static") / "schema_classic.yaml")
    run(
        directory,
        "helm-summarize",
        *("--suite", "demo", "--output-path", "demo_output"),
        *("--local-path", local_path, "--schema-path", schema),
        # HELM compiles templates, and CPython 3.11 cannot parse in two threads without failing
        # now and then ("AST constructor recursion depth mismatch").
        *("--num-threads", "1"),
    )
    group = directory / "demo_output" / "runs" / "demo" / "groups" / "dyck_language.json"
    table, *_ = json.loads(group.read_text())
    assert len({row[0]["value"] for row in table["rows"]}) == len(SETTINGS)
