"""Small run directories, written by hand in HELM's format."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from flexgen_helm.specs.request import EngineDescription
from flexgen_helm.specs.run_record import RunRecord

DYCK = "dyck_language_np=2:model={model}"

RECORD = RunRecord(
    engine=EngineDescription(
        model="facebook/opt-30b",
        fingerprint="f1",
        compression="none",
        dtype="float32",
        device="cpu",
        num_parameters=30,
        weight_bytes=6000,
        linear_weight_bytes=4000,
    ),
    requests=4,
    prompt_tokens=40,
    generated_tokens=12,
    computed_prompt_tokens=10.0,
    padding_rows=1.0,
    decode_rows=9,
    decode_products=4.0,
    effective_batch=2.5,
    prefill_s=1.0,
    decode_s=2.0,
    cache_bytes=800,
    cached_tokens=50,
    peak_memory_bytes=9000,
    prefill_peak_bytes=8000,
    peak_host_bytes=12000,
    peak_disk_bytes=700,
    policy="8x2",
    predicted_prefill_s=1.5,
    predicted_decode_s=2.5,
    planned_memory_bytes=9500,
)
"""Throughput 12 tokens / 3 s = 4 tokens/s; 800 bytes / 50 tokens = 16 bytes/token; unique ratio
10 / 40 tokens = 0.25; 9 decode rows / 4 products = 2.25 rows."""


def stat(metric, mean, *, count=1, **name):
    """A statistic of `count` trials that all gave `mean`."""
    total = mean * count
    numbers = {"sum": total, "min": mean, "max": mean, "mean": mean, "stddev": 0.0}
    return {"name": {"name": metric, **name}, "count": count, **numbers}


def request_state(*, max_tokens=5, tokens=(3,), request_time=0.5):
    """A request with completions of so many tokens; half a second unless told."""
    completions = [{"text": "x", "logprob": 0, "tokens": [{"text": "x"}] * n} for n in tokens]
    result = {"success": True, "completions": completions, "request_time": request_time}
    return {"request": {"prompt": "p", "max_tokens": max_tokens}, "result": result}


def scores(metric, by_instance, *, split="test", **entry):
    """Entries of per_instance_stats.json: scores by trial, of each instance."""
    return [
        {
            "instance_id": instance,
            "train_trial_index": trial,
            "stats": [stat(metric, score, split=split)],
            **entry,
        }
        for instance, by_trial in by_instance.items()
        for trial, score in enumerate(by_trial)
    ]


def answer(instance, text, *, trial=0, logprob=-1.0, **about):
    """A request state of an instance, answered by a single token."""
    state = request_state()
    token = {"text": text, "logprob": logprob}
    completion = {"text": text, "logprob": logprob, "tokens": [token]}
    state["request"]["prompt"] = f"question of {instance}, {trial}"
    state["result"]["completions"] = [completion]
    return {
        **state,
        "instance": {"id": instance, "split": "test", **about},
        "train_trial_index": trial,
    }


@pytest.fixture
def record():
    return RECORD


@pytest.fixture
def make_stat():
    return stat


@pytest.fixture
def make_request_state():
    return request_state


@pytest.fixture
def make_scores():
    return scores


@pytest.fixture
def make_answer():
    return answer


@pytest.fixture
def make_answered(make_run):
    """A run in which each instance got an answer, and 1 where it is "yes", else 0."""

    def make(deployment, texts, *, logprob=-1.0, record=RECORD, **about):
        ids = {f"id{index}": text for index, text in enumerate(texts)}
        right = {instance: [float(text == "yes")] for instance, text in ids.items()}
        mean = sum(by_trial[0] for by_trial in right.values()) / len(right)
        return make_run(
            deployment,
            stats=[
                stat("exact_match_indicator", mean, split="test"),
                stat("num_instances", len(right), split="test"),
            ],
            states=[answer(instance, text, logprob=logprob) for instance, text in ids.items()],
            instances=scores("exact_match_indicator", right),
            record=record,
            **about,
        )

    return make


@pytest.fixture
def make_run(tmp_path):
    """Write a complete run; everything about it can be said otherwise."""

    def make(
        deployment="flexgen/opt-30b",
        *,
        suite="s",
        name=DYCK,
        args=None,
        stats=None,
        states=None,
        record=None,
        instances=(),
    ):
        run = tmp_path / "benchmark_output" / "runs" / suite
        run /= name.format(model=deployment.replace("/", "_"))
        run.mkdir(parents=True)
        if stats is None:
            stats = [stat("exact_match_indicator", 0.75, split="test")]
            stats.append(stat("num_instances", 4, split="test"))
        files = {
            "run_spec.json": {
                "name": run.name,
                "scenario_spec": {"args": {"num_parenthesis_pairs": 2} if args is None else args},
                "adapter_spec": {"model_deployment": deployment, "model": deployment},
            },
            "scenario.json": {"name": "dyck_language"},
            "scenario_state.json": {"request_states": states or [request_state()]},
            "stats.json": stats,
            "per_instance_stats.json": list(instances),
        }
        if record is not None:
            files["flexgen_run.json"] = asdict(record)
        for file, content in files.items():
            (run / file).write_text(json.dumps(content))
        return run

    return make


@pytest.fixture
def output(tmp_path):
    """HELM's output directory, where `make_run` puts its runs."""
    return tmp_path / "benchmark_output"


@pytest.fixture
def make_settings(make_run):
    """The same task uncompressed and compressed, scored `scores` by compression suffix."""

    def make(scores, **about):
        for suffix, score in scores.items():
            stats = [stat("exact_match_indicator", score, split="test")]
            stats.append(stat("num_instances", 4, split="test"))
            decode_s = 5.0 if suffix else 2.0
            make_run(
                f"flexgen/opt-30b{suffix}",
                stats=stats,
                record=replace(RECORD, decode_s=decode_s),
                **about,
            )

    return make
