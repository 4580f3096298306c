import json
from dataclasses import replace

import pandas as pd
import pytest

from flexgen_helm.errors import TablesError
from flexgen_helm.tables.collect import efficiency, scenario_metrics
from flexgen_helm.tables.sources import scenario_of, task_of


def only_row(table):
    assert len(table) == 1
    return table.iloc[0]


def present(row):
    """Its cells without the missing ones."""
    return {name: value for name, value in row.items() if not pd.isna(value)}


def test_a_statistic_is_one_row(make_run, make_stat):
    run = make_run(
        "flexgen/opt-30b-w4-kv8-g32-bf16",
        stats=[make_stat("exact_match_indicator", 0.75, count=2, split="test")],
    )
    assert present(only_row(scenario_metrics(run))) == {
        "suite": "s",
        "run": "dyck_language_np=2:model=flexgen_opt-30b-w4-kv8-g32-bf16",
        "task": "dyck_language_np=2",
        "scenario": "dyck_language",
        "scenario_args": "num_parenthesis_pairs=2",
        "model": "opt-30b",
        "deployment": "flexgen/opt-30b-w4-kv8-g32-bf16",
        "compression": "w4-kv8-g32",
        "weight_bits": 4,
        "cache_bits": 8,
        "group_size": 32,
        "dtype": "bfloat16",
        "metric": "exact_match_indicator",
        "split": "test",
        "mean": 0.75,
        "stddev": 0.0,
        "count": 2,
        "sum": 1.5,
        "min": 0.75,
        "max": 0.75,
    }


def test_the_recorded_dtype_is_preferred_to_the_named(make_run, record):
    run = make_run("flexgen/opt-30b", record=record)
    assert scenario_metrics(run)["dtype"].unique() == ["float32"]


def test_an_uncompressed_model_has_a_label_but_no_bits_and_no_groups(make_run):
    row = present(scenario_metrics(make_run("flexgen/facebook/opt-30b")).iloc[0])
    assert row["compression"] == "none"
    assert row["model"] == "facebook/opt-30b"
    assert row["dtype"] == "auto"
    assert not row.keys() & {"weight_bits", "cache_bits", "group_size"}


def test_a_foreign_deployment_has_scores_under_its_own_name(make_run):
    row = present(scenario_metrics(make_run("huggingface/opt-125m")).iloc[0])
    assert row["model"] == row["deployment"] == "huggingface/opt-125m"
    assert row["mean"] == 0.75
    assert not row.keys() & {"compression", "weight_bits", "cache_bits", "group_size", "dtype"}


def test_perturbations_of_a_statistic_are_told_apart(make_run, make_stat):
    typos = {"name": "typos", "robustness": True, "fairness": False, "prob": 0.1}
    worst = {"name": "robustness", "robustness": True, "fairness": False, "computed_on": "worst"}
    stats = [
        make_stat("exact_match", 0.1, split="test", perturbation=worst),
        make_stat("exact_match", 0.2, split="test", perturbation={**typos, "computed_on": "worst"}),
        make_stat(
            "exact_match", 0.3, split="test", perturbation={**typos, "computed_on": "original"}
        ),
        make_stat("exact_match", 0.4, split="test"),
    ]
    table = scenario_metrics(make_run(stats=stats))
    assert table["perturbation"].fillna("").tolist() == [
        "",
        "robustness",
        "typos:prob=0.1",
        "typos:prob=0.1",
    ]
    assert table["computed_on"].fillna("").tolist() == ["", "worst", "original", "worst"]
    assert table["mean"].tolist() == [0.4, 0.1, 0.3, 0.2]


def test_a_statistic_without_values_has_no_mean(make_run):
    stats = [{"name": {"name": "training_co2_cost", "split": "test"}, "count": 0, "sum": 0}]
    row = only_row(scenario_metrics(make_run(stats=stats)))
    assert row["count"] == 0
    assert pd.isna(row["mean"])


def test_a_statistic_written_twice_is_one_row(make_run, make_stat):
    twice = [make_stat("exact_match", 0.5, split="test")] * 2
    assert len(scenario_metrics(make_run(stats=twice))) == 1


def test_contradicting_statistics_are_reported(make_run, make_stat):
    stats = [make_stat("exact_match", mean, split="test") for mean in (0.5, 0.7)]
    run = make_run(stats=stats)
    with pytest.warns(UserWarning, match=r"stats.json holds different values of.*exact_match"):
        assert scenario_metrics(run)["mean"].tolist() == [0.5]


def test_a_recorded_run_has_all_costs(make_run, record):
    row = present(only_row(efficiency(make_run(record=record))))
    expected = {
        "dtype": "float32",
        "requests": 4,
        "prompt_tokens": 40,
        "computed_prompt_tokens": 10.0,
        "unique_ratio": 0.25,
        "generated_tokens": 12,
        "effective_batch": 2.5,
        "padding_rows": 1.0,
        "mean_decode_rows": 2.25,
        "prefill_s": 1.0,
        "decode_s": 2.0,
        "request_s": 3.0,
        "throughput": 4.0,
        "weight_bytes": 6000,
        "linear_weight_bytes": 4000,
        "cache_bytes": 800,
        "cached_tokens": 50,
        "cache_bytes_per_token": 16.0,
        "peak_memory_bytes": 9000,
        "prefill_peak_bytes": 8000,
        "peak_host_bytes": 12000,
        "peak_disk_bytes": 700,
        "policy": "8x2",
        "predicted_prefill_s": 1.5,
        "predicted_decode_s": 2.5,
        "planned_memory_bytes": 9500,
    }
    assert {name: row[name] for name in expected} == expected


def test_bytes_per_token_of_a_run_that_cached_nothing_are_missing(make_run, record):
    run = make_run(record=replace(record, cache_bytes=0, cached_tokens=0))
    assert pd.isna(only_row(efficiency(run))["cache_bytes_per_token"])


def test_decode_rows_of_a_run_that_decoded_nothing_are_missing(make_run, record):
    run = make_run(record=replace(record, decode_rows=0, decode_products=0.0))
    assert pd.isna(only_row(efficiency(run))["mean_decode_rows"])


def test_an_unrecorded_run_has_what_helm_knows(make_run, make_request_state):
    states = [
        make_request_state(tokens=(3, 2)),
        make_request_state(tokens=(40,), max_tokens=0),  # an echoed prompt, nothing generated
        make_request_state(tokens=(1,), request_time=None),
        {"request": {"max_tokens": 5}},  # a dry run asks nothing
    ]
    row = present(only_row(efficiency(make_run("huggingface/opt-125m", states=states))))
    assert (row["requests"], row["generated_tokens"], row["request_s"]) == (4, 6, 1.0)
    assert not row.keys() & {"prompt_tokens", "prefill_s", "throughput", "weight_bytes"}


@pytest.mark.parametrize("text", ["", "{", '"\xff"', "[]", "{}", "null", '{"adapter_spec": {}}'])
@pytest.mark.parametrize("read", [scenario_metrics, efficiency])
def test_a_damaged_run_spec_is_named(make_run, read, text):
    run = make_run()
    (run / "run_spec.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(TablesError, match=r"run_spec.json is damaged .* delete its run directory"):
        read(run)


@pytest.mark.parametrize("text", ['[{"name": ', "null", '[{"count": 1}]', '["exact_match"]'])
def test_damaged_statistics_are_named(make_run, text):
    run = make_run()
    (run / "stats.json").write_text(text)
    with pytest.raises(TablesError, match=r"stats.json is damaged"):
        scenario_metrics(run)


@pytest.mark.parametrize("text", ["{", "{}", '{"request_states": [{"result": {}}]}'])
def test_a_damaged_scenario_state_is_named(make_run, text):
    run = make_run()
    (run / "scenario_state.json").write_text(text)
    with pytest.raises(TablesError, match=r"scenario_state.json is damaged"):
        efficiency(run)


@pytest.mark.parametrize("text", ["", "[]", '{"engine": {}}'])
@pytest.mark.parametrize("read", [scenario_metrics, efficiency])
def test_a_damaged_run_record_is_named(make_run, read, text):
    run = make_run()
    (run / "flexgen_run.json").write_text(text)
    with pytest.raises(TablesError, match=r"flexgen_run.json is damaged"):
        read(run)


def test_a_record_of_an_older_version_is_named_with_what_it_lacks(make_run, record):
    run = make_run(record=record)
    path = run / "flexgen_run.json"
    fields = json.loads(path.read_text())
    del fields["computed_prompt_tokens"]
    path.write_text(json.dumps(fields))
    message = r"flexgen_run.json is damaged or from another version .*'computed_prompt_tokens'"
    with pytest.raises(TablesError, match=message):
        efficiency(run)


def test_a_compression_that_does_not_exist_is_reported_with_its_run(make_run):
    run = make_run("flexgen/opt-30b-w5")
    with pytest.raises(TablesError, match=r"run_spec.json cannot be tabulated: weight_bits=5"):
        scenario_metrics(run)


@pytest.mark.parametrize(
    ("run", "scenario", "task"),
    [
        ("dyck_language_np=3:model=m", "dyck_language", "dyck_language_np=3"),
        ("mmlu:subject=a,method=b,model=m", "mmlu", "mmlu:subject=a,method=b"),
        ("wikitext_103:model=m", "wikitext_103", "wikitext_103"),
        ("legal_support,method=b:model=m", "legal_support", "legal_support,method=b"),
        ("gsm:model=m,model_deployment=d,stop=hash", "gsm", "gsm:stop=hash"),
        ("custom", "custom", "custom"),
        ("=", "=", "="),
    ],
)
def test_scenario_and_task_of_a_run_name(run, scenario, task):
    assert (scenario_of(run), task_of(run)) == (scenario, task)
