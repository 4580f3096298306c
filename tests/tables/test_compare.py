from dataclasses import replace

import pandas as pd
import pytest

from flexgen_helm.errors import TablesError
from flexgen_helm.tables.compare import compare, compare_settings


def by_compression(path, column, **options):
    table = compare_settings(path, **options)
    values = table[column].astype(object).where(table[column].notna(), None)
    return dict(zip(table["compression"], values, strict=True))


def scored(make_stat, split="test", **scores):
    return [make_stat(metric, score, split=split) for metric, score in scores.items()]


def test_scores_and_costs_beside_the_uncompressed_ones(make_settings, output):
    make_settings({"": 0.75, "-w4-kv4": 0.25, "-w8": 0.75, "-w4": 0.5})
    table = compare_settings(output)
    assert table["compression"].tolist() == ["none", "w8", "w4", "w4-kv4"]
    assert table["score"].tolist() == [0.75, 0.75, 0.5, 0.25]
    assert table["difference"].tolist() == [0.0, 0.0, -0.25, -0.5]
    # 12 tokens in 3 s uncompressed, in 6 s compressed.
    assert table["throughput"].tolist() == [4.0, 2.0, 2.0, 2.0]
    assert table["throughput_ratio"].tolist() == [1.0, 0.5, 0.5, 0.5]
    assert table["n"].tolist() == [4] * 4
    assert table["metric"].unique().tolist() == ["exact_match_indicator"]
    assert table["split"].unique().tolist() == ["test"]
    assert table["weight_bytes"].tolist() == [6000] * 4
    assert table["cache_bytes_per_token"].tolist() == [16.0] * 4
    reference = "s/dyck_language_np=2:model=flexgen_opt-30b"
    assert table["reference"].unique().tolist() == [reference]


def test_without_an_uncompressed_run_differences_are_missing(make_settings, output):
    make_settings({"-w4": 0.5, "-w4-kv4": 0.25})
    table = compare_settings(output)
    missing = ["difference", "throughput_ratio", "reference"]
    assert table[missing].isna().all(axis=None)
    assert table["score"].tolist() == [0.5, 0.25]


def test_tasks_are_compared_with_themselves_only(make_settings, output):
    make_settings({"": 1.0, "-w4": 0.5}, name="mmlu:subject=a,model={model}")
    make_settings({"": 0.0, "-w4": 0.5}, name="mmlu:subject=b,model={model}")
    table = compare_settings(output)
    assert table["task"].tolist() == ["mmlu:subject=a"] * 2 + ["mmlu:subject=b"] * 2
    assert table["difference"].tolist() == [0.0, -0.5, 0.0, 0.5]


def test_a_suite_of_its_own_for_each_setting(make_settings, output):
    make_settings({"": 0.75}, suite="uncompressed")
    make_settings({"-w4": 0.5}, suite="compressed")
    assert by_compression(output, "difference") == {"none": 0.0, "w4": -0.25}


def test_the_reference_of_the_same_suite_is_preferred(make_settings, output):
    make_settings({"": 0.0}, suite="a")
    make_settings({"": 0.75, "-w4": 0.5}, suite="b")
    assert compare_settings(output)["difference"].tolist() == [0.0, 0.0, -0.25]


def test_the_reference_of_the_same_dtype_then_float32_is_preferred(make_run, make_stat, output):
    scores = {"-bf16": 0.25, "-fp32": 0.75, "-w4-bf16": 0.5, "-w4-fp16": 0.5}
    for suffix, score in scores.items():
        stats = scored(make_stat, exact_match_indicator=score)
        make_run(f"flexgen/opt-30b{suffix}", stats=stats)
    table = compare_settings(output)
    assert table["dtype"].tolist() == ["bfloat16", "float32", "bfloat16", "float16"]
    assert table["difference"].tolist() == [0.0, 0.0, 0.25, -0.25]


def test_runs_on_other_numbers_of_instances_are_not_compared(make_run, make_stat, output):
    for suffix, instances in {"": 100, "-w4": 10}.items():
        stats = scored(make_stat, exact_match_indicator=0.5, num_instances=instances)
        make_run(f"flexgen/opt-30b{suffix}", stats=stats)
    assert by_compression(output, "difference") == {"none": 0.0, "w4": None}
    assert by_compression(output, "n") == {"none": 100, "w4": 10}


def test_a_foreign_deployment_has_a_score_and_no_reference(make_settings, make_run, output):
    make_settings({"": 0.5})
    make_run("huggingface/opt-30b")
    foreign = compare_settings(output).query("model == 'huggingface/opt-30b'").iloc[0]
    assert foreign["score"] == 0.75
    assert foreign[["compression", "difference", "throughput", "reference"]].isna().all()


@pytest.mark.parametrize(
    ("name", "scores", "metric"),
    [
        ("boolq:model={model}", {"exact_match": 1, "quasi_exact_match": 0}, "quasi_exact_match"),
        ("boolq:model={model}", {"exact_match": 1, "f1_score": 0}, "exact_match"),
        ("wikitext_103:model={model}", {"logprob": 1, "bits_per_byte": 0}, "bits_per_byte"),
        ("mine:model={model}", {"bits_per_byte": 1, "rouge_l": 0}, "rouge_l"),
    ],
)
def test_the_main_metric_or_the_best_there_is(make_run, make_stat, name, scores, metric):
    run = make_run(name=name, stats=scored(make_stat, **scores))
    assert compare_settings(run)["metric"].tolist() == [metric]


def test_a_run_without_any_of_the_metrics_is_still_a_row(make_run, make_stat, record):
    run = make_run(stats=scored(make_stat, toxicity=1), record=record)
    row = compare_settings(run).iloc[0]
    assert row[["metric", "split", "n", "score", "difference"]].isna().all()
    assert row["throughput"] == 4.0


@pytest.mark.parametrize(
    ("splits", "score"),
    [({"valid": 0.25, "test": 0.5}, 0.5), ({"valid": 0.25}, 0.25), ({"train": 1.0}, None)],
)
def test_the_test_split_is_preferred(make_run, make_stat, splits, score):
    stats = [make_stat("exact_match", mean, split=split) for split, mean in splits.items()]
    row = compare_settings(make_run(stats=stats)).iloc[0]
    assert (None if pd.isna(row["score"]) else row["score"]) == score


def test_perturbed_instances_do_not_count(make_run, make_stat):
    worst = {"name": "robustness", "robustness": True, "computed_on": "worst"}
    stats = [
        make_stat("exact_match_indicator", 0.0, split="test", perturbation=worst),
        make_stat("exact_match", 0.5, split="test"),
    ]
    assert compare_settings(make_run(stats=stats))["metric"].tolist() == ["exact_match"]


def test_sub_splits_are_joined(make_run, make_stat):
    stats = [
        make_stat("exact_match", 1.0, count=3, split="test", sub_split="easy"),
        make_stat("exact_match", 0.0, count=1, split="test", sub_split="hard"),
        make_stat("num_instances", 6, count=3, split="test", sub_split="easy"),
        make_stat("num_instances", 2, count=1, split="test", sub_split="hard"),
    ]
    row = compare_settings(make_run(stats=stats)).iloc[0]
    assert (row["score"], row["n"]) == (0.75, 8)


def test_another_metric_can_be_asked_for(make_run, make_stat, output):
    stats = scored(make_stat, exact_match_indicator=0.5, num_output_tokens=3)
    make_run("flexgen/opt-30b", stats=stats)
    make_run("flexgen/opt-30b-w4", stats=stats[:1])
    scores = by_compression(output, "score", metric="num_output_tokens")
    assert scores == {"none": 3.0, "w4": None}


def test_a_metric_that_no_run_has(make_run):
    message = r"metric 'rouge_9' is in none .* use one of exact_match_indicator, num_instances"
    with pytest.raises(TablesError, match=message):
        compare_settings(make_run(), metric="rouge_9")


YES_NO = ["yes"] * 6 + ["no"] * 4
LOST = ["yes"] * 4 + ["maybe"] * 2 + ["no"] * 4


def compressed(table, label="w4"):
    return table[table["compression"] == label].iloc[0]


def test_differences_are_paired_by_instance(make_answered, output):
    make_answered("flexgen/opt-30b", YES_NO)
    make_answered("flexgen/opt-30b-w4", LOST, logprob=-1.5)
    row = compressed(compare_settings(output))
    assert row["difference"] == pytest.approx(-0.2)
    assert row["difference_low"] <= -0.2 <= row["difference_high"] <= 0
    assert (row["test"], row["p_value"]) == ("McNemar", 0.5)  # two lost, none won
    assert (row["answers"], row["changed_answers"]) == (10, 2)
    assert row["logprob_change"] == pytest.approx(-0.5)


def test_a_reference_is_not_tested_against_itself(make_answered, output):
    make_answered("flexgen/opt-30b", YES_NO)
    row = compare_settings(output).iloc[0]
    assert row["difference"] == 0
    missing = ["difference_low", "p_value", "p_adjusted", "answers", "changed_answers"]
    assert row[missing].isna().all()


def test_the_same_setting_twice_does_not_differ(make_answered, output):
    make_answered("flexgen/opt-30b", YES_NO, suite="once")
    make_answered("flexgen/opt-30b-w4", YES_NO, suite="once")
    row = compressed(compare_settings(output))
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (0, 0, 0)
    assert (row["p_adjusted"], row["changed_answers"], row["logprob_change"]) == (1, 0, 0)


def test_p_values_are_adjusted_for_all_rows_of_the_table(make_answered, output):
    lost = ["no"] * 6 + ["no"] * 4
    make_answered("flexgen/opt-30b", YES_NO)
    make_answered("flexgen/opt-30b-w4", lost)
    make_answered("flexgen/opt-30b-w2", lost)
    table = compare_settings(output)
    assert compressed(table)["p_value"] == pytest.approx(2 / 64)  # six of six lost
    assert compressed(table)["p_adjusted"] == pytest.approx(4 / 64)


def test_trials_of_an_instance_are_one_score(make_run, make_scores, make_stat, output):
    for suffix, by_instance in {"": [1, 1, 0], "-w4": [1, 0, 0]}.items():
        make_run(
            f"flexgen/opt-30b{suffix}",
            stats=scored(make_stat, exact_match_indicator=sum(by_instance) / 3),
            instances=make_scores("exact_match_indicator", {"id0": by_instance, "id1": [1, 1, 1]}),
        )
    row = compressed(compare_settings(output))
    assert row["test"] == "sign flips"
    assert row["difference_low"] == pytest.approx(-1 / 3)
    assert row["difference_high"] == 0


def test_another_reference_can_be_named(make_answered, output):
    make_answered("flexgen/opt-30b", YES_NO)
    make_answered("flexgen/opt-30b-w4", LOST)
    table = compare_settings(output, reference="w4")
    assert dict(zip(table["compression"], table["difference"], strict=True)) == pytest.approx(
        {"none": 0.2, "w4": 0}
    )


def test_overall_means_count_every_task_alike(make_answered, output):
    for task, number in (("a", 4), ("b", 40)):
        name = f"mmlu:subject={task},model={{model}}"
        make_answered("flexgen/opt-30b", ["yes"] * number, name=name)
        lost = ["yes"] * number if task == "b" else ["yes", "yes", "yes", "no"]
        make_answered("flexgen/opt-30b-w4", lost, name=name)
    reference, row = (compare(output).overall.iloc[index] for index in (0, 1))
    assert (reference["score"], reference["difference"]) == (1, 0)
    assert (row["tasks"], row["n"], row["score"]) == (2, 44, 0.875)
    assert row["difference"] == -0.125
    assert row["difference_low"] < -0.125 < row["difference_high"] <= 0
    assert (row["answers"], row["changed_answers"]) == (44, 1)
    # Two runs of 12 tokens in 3 seconds each.
    assert (row["throughput"], row["throughput_ratio"], row["request_s"]) == (4, 1, 6)


def test_overall_is_over_the_tasks_that_all_settings_have(make_answered, output):
    make_answered("flexgen/opt-30b", YES_NO, name="mmlu:subject=a,model={model}")
    make_answered("flexgen/opt-30b-w4", LOST, name="mmlu:subject=a,model={model}")
    make_answered("flexgen/opt-30b", YES_NO, name="mmlu:subject=b,model={model}")
    assert compare(output).overall["tasks"].tolist() == [1, 1]


def test_bytes_of_the_cache_are_those_of_tasks_that_have_one(make_answered, record, output):
    for suffix in ("", "-w4"):
        without = replace(record, cache_bytes=0, cached_tokens=0)
        model = f"flexgen/opt-30b{suffix}"
        make_answered(model, YES_NO, name="mmlu:subject=a,model={model}", record=without)
        make_answered(model, YES_NO, name="wikifact:k=5,model={model}")
    assert compare(output).overall["cache_bytes_per_token"].tolist() == [16, 16]


def test_bits_per_byte_are_not_averaged_with_parts_of_1(make_answered, make_run, make_stat, output):
    for suffix in ("", "-w4"):
        make_answered(f"flexgen/opt-30b{suffix}", YES_NO)
        stats = scored(make_stat, bits_per_byte=3.0)
        make_run(f"flexgen/opt-30b{suffix}", name="wikitext_103:model={model}", stats=stats)
    comparison = compare(output)
    assert comparison.overall["tasks"].tolist() == [1, 1]
    assert len(comparison.settings) == 4


def test_only_the_named_deployments(make_answered, output):
    for suffix in ("", "-w4", "-w2"):
        make_answered(f"flexgen/opt-30b{suffix}", YES_NO)
    named = ["flexgen/opt-30b", "flexgen/opt-30b-w2"]
    comparison = compare(output, deployments=named)
    assert comparison.settings["compression"].tolist() == ["none", "w2"]
    assert comparison.costs["deployment"].tolist() == named


def test_a_reference_that_no_run_has(make_answered, output):
    make_answered("flexgen/opt-30b-w4", YES_NO)
    with pytest.raises(
        TablesError, match=r"reference 'w8' is the setting of none .* use one of w4"
    ):
        compare(output, reference="w8")
    assert compare(output, reference="w4-g64").settings["difference"].tolist() == [0]


def test_without_a_reference_there_is_nothing_overall(make_answered, output):
    make_answered("flexgen/opt-30b-w4", LOST)
    assert compare(output).overall.empty
