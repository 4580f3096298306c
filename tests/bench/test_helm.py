"""Which runs a benchmark makes, and what is worked out from them; no run takes place."""

from dataclasses import asdict, replace

import pytest

from flexgen_helm.bench import helm
from flexgen_helm.bench.clients import OURS, THEIRS, peer_client
from flexgen_helm.bench.helm import HelmBenchmark, HelmSession, ratios, run_helm_benchmark
from flexgen_helm.bench.helm_run import RunRow, Site, Size, Timed
from flexgen_helm.bench.scores import ScoreRow
from flexgen_helm.bench.suites import SUITES

BENCHMARK = HelmBenchmark(
    suites=[SUITES["natural"], SUITES["mmlu"]],
    size=Size(instances=100, train_trials=3),
    rounds=1,
    peers=[peer_client("float32-4"), peer_client("bfloat16-1")],
    pilot_instances=8,
    score_instances=10,
)

SECONDS = {"auto": 2.0, "bfloat16": 20.0, "float32": 30.0}
"""Of a run, by the dtype of the client."""


def row(**changes):
    about = {"suite": "natural", "stage": "timed", "client": OURS, "dtype": "auto", "threads": 4}
    numbers = {"instances": 1, "train_trials": 1, "requests": 1, "generated_tokens": 1}
    return RunRow(**{**about, **numbers, "wall_s": 2.0, "execution_s": 1.0, **changes})


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session whose runs take `SECONDS` and whose scores are the rows they were compared from."""

    def pretended_run(run, site):
        pretended = row(
            suite=run.suite.name,
            stage=run.stage,
            client=run.client.name,
            dtype=run.client.dtype,
            threads=run.client.threads,
            instances=run.size.instances,
            train_trials=run.size.train_trials,
            wall_s=10 + SECONDS[run.client.dtype],
            execution_s=SECONDS[run.client.dtype],
        )
        return Timed(row=pretended, results=site.directory)

    def pretended_scores(theirs, ours):
        fields = dict.fromkeys(ScoreRow.__dataclass_fields__, 0)
        dtypes = {"their_dtype": theirs.row.dtype, "our_dtype": ours.row.dtype}
        about = {"suite": theirs.row.suite, "stage": theirs.row.stage}
        return ScoreRow(**{**fields, **about, **dtypes})

    monkeypatch.setattr(helm, "timed_run", pretended_run)
    monkeypatch.setattr(helm, "compare_runs", pretended_scores)
    site = Site(data=tmp_path, checkpoint=tmp_path, positions=2048, directory=tmp_path)
    return HelmSession(site, announce=lambda _: None)


def runs(session, suite):
    return [(r.stage, r.client, r.dtype, r.instances) for r in session.rows if r.suite == suite]


def test_the_fastest_peer_of_a_pilot_is_timed_between_two_runs_of_ours(session):
    report = run_helm_benchmark(BENCHMARK, session, {"cpu": "a CPU"})
    assert runs(session, "natural") == [
        ("pilot", THEIRS, "float32", 8),
        ("pilot", THEIRS, "bfloat16", 8),
        ("timed", OURS, "auto", 100),
        ("timed", THEIRS, "bfloat16", 100),
        ("timed", OURS, "auto", 100),
        ("scores", THEIRS, "float32", 10),
        ("scores", OURS, "float32", 10),
    ]
    assert runs(session, "mmlu") == runs(session, "natural")
    assert report.ratios == {
        "natural_wall_time": 2.5,
        "natural_execution_time": 10.0,
        "mmlu_wall_time": 2.5,
        "mmlu_execution_time": 10.0,
    }
    assert report.conditions["cpu"] == "a CPU"
    assert report.conditions["peer"].startswith("fastest on 8 instances of float32 with 4 threads")


def test_rows_are_the_runs_and_then_the_comparisons(session):
    rows = run_helm_benchmark(BENCHMARK, session, {}).rows
    assert rows[: len(session.rows)] == [asdict(row) for row in session.rows]
    comparisons = [(r["suite"], r["stage"], r["our_dtype"]) for r in rows[len(session.rows) :]]
    assert comparisons == [
        ("natural", "timed", "auto"),
        ("mmlu", "timed", "auto"),
        ("natural", "scores", "float32"),
        ("mmlu", "scores", "float32"),
    ]


def test_without_a_pilot_every_peer_is_timed_and_the_fastest_counts(session):
    benchmark = replace(BENCHMARK, pilot_instances=0, score_instances=0, suites=[SUITES["natural"]])
    report = run_helm_benchmark(benchmark, session, {})
    assert [run[1:3] for run in runs(session, "natural")] == [
        (OURS, "auto"),
        (THEIRS, "float32"),
        (OURS, "auto"),
        (OURS, "auto"),
        (THEIRS, "bfloat16"),
        (OURS, "auto"),
    ]
    assert report.ratios["natural_execution_time"] == 10.0
    assert report.conditions["peer"].startswith("each of float32 with 4 threads")


def test_rounds_alternate_between_suites(session):
    benchmark = replace(BENCHMARK, rounds=2, peers=BENCHMARK.peers[:1], score_instances=0)
    run_helm_benchmark(benchmark, session, {})
    assert [r.suite for r in session.rows] == [*["natural"] * 3, *["mmlu"] * 3] * 2


def test_a_ratio_is_of_medians():
    theirs = [row(client=THEIRS, wall_s=seconds) for seconds in (30.0, 36.0, 90.0)]
    ours = [row(wall_s=seconds) for seconds in (3.0, 4.0, 60.0)]
    assert ratios([*theirs, *ours])["natural_wall_time"] == 9.0


def test_only_timed_runs_count():
    timed = [row(client=THEIRS, wall_s=8.0), row(wall_s=2.0)]
    others = [row(stage="pilot", client=THEIRS, wall_s=1.0), row(stage="scores", wall_s=1.0)]
    assert ratios([*timed, *others])["natural_wall_time"] == 4.0
    assert ratios(others) == {}
