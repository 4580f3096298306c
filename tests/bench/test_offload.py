"""Which trials a benchmark makes, and what is worked out from them; no trial takes place."""

from dataclasses import replace

import pytest

from flexgen_helm.bench import offload
from flexgen_helm.bench.offload import PILOT, OffloadSession, run_offload_benchmark
from flexgen_helm.bench.offload_benchmark import STAGES, OffloadBenchmark
from flexgen_helm.bench.trial import (
    ACCELERATE,
    OURS,
    TRANSFORMERS,
    Bench,
    TrialRow,
    UniformWorkload,
)

BENCHMARK = OffloadBenchmark(
    stages=STAGES,
    peers=[TRANSFORMERS, ACCELERATE],
    peer_batches=[4, 8, 16],
    prefill_heavy=UniformWorkload(512, 32),
    decode_heavy=UniformWorkload(32, 128),
    batch=64,
    decode_batch=96,
    memory_limit_bytes=2 * 10**9,
    micro_batches=[1, 2],
    micro_batch_size=8,
    rounds=1,
)

SPEEDS = {OURS: 8.0, TRANSFORMERS: 5.0, ACCELERATE: 2.0}
"""Tokens a second."""

MACHINE = {
    "gemm_flop_per_s": 400e9,
    "disk_bytes_per_s": 2e9,
    "streamed_bytes": 10**9,
    "linear_parameters": 5 * 10**8,
}


def pretended(trial, bench, *, number):
    """A trial of which 16 requests do not fit a limit, and 8 are faster than 4."""
    killed = trial.system == ACCELERATE and trial.memory_limit_bytes and trial.batch > 8
    seconds = trial.batch * trial.workload.new_tokens / SPEEDS[trial.system] / trial.batch**0.1
    return replace(
        TrialRow.of(trial),
        generated_tokens=None if killed else trial.batch * trial.workload.new_tokens,
        prefill_s=None if killed else seconds / 2,
        decode_s=None if killed else seconds / 2,
        tokens_per_s=None if killed else SPEEDS[trial.system],
        memory_bytes=900,
        planned_bytes=1000,
        spill_bytes=0,
    )


@pytest.fixture
def session(tmp_path, monkeypatch):
    trials = []

    def record(trial, bench, *, number):
        trials.append(trial)
        return pretended(trial, bench, number=number)

    monkeypatch.setattr(offload, "run_trial", record)
    monkeypatch.setattr(offload, "ask", lambda *_, **__: dict(MACHINE))
    session = OffloadSession(
        Bench(checkpoint=tmp_path, directory=tmp_path), announce=lambda _: None
    )
    session.trials = trials
    return session


def test_a_peer_is_timed_with_its_best_batch(session):
    run_offload_benchmark(BENCHMARK, session, {})
    timed = {
        (trial.stage, trial.system): trial.batch
        for trial in session.trials
        if trial.stage != PILOT and trial.system != OURS
    }
    assert timed == {
        ("prefill-heavy", TRANSFORMERS): 16,
        ("prefill-heavy", ACCELERATE): 16,
        ("decode-heavy", ACCELERATE): 8,
    }


def test_ratios(session):
    ratios = run_offload_benchmark(BENCHMARK, session, {}).ratios
    assert ratios["prefill-heavy_over_transformers"] == 1.6
    assert ratios["prefill-heavy_over_accelerate"] == 4
    assert ratios["decode-heavy_over_accelerate"] == 4
    assert ratios["overlap_over_serial"] == ratios["store_over_plain"] == 1
    assert ratios["largest_memory_over_planned"] == 0.9
    # 64 requests of 512 tokens, 10^9 operations each, in half of 64 * 32 / 8 / 64^0.1 s.
    prefill_s = 64 * 32 / 8 / 64**0.1 / 2
    expected = 64 * 512 * 1e9 / prefill_s / 400e9
    assert ratios["prefill_gemm_over_peak"] == pytest.approx(expected, abs=1e-3)
    # 12 passes over 10^9 bytes, in half of 8 * 13 / 8 / 8^0.1 s.
    decode_s = 8 * 13 / 8 / 8**0.1 / 2
    expected = 12 * 1e9 / decode_s / 2e9
    assert ratios["decode_disk_over_sequential"] == pytest.approx(expected, abs=1e-3)


def test_passes_of_the_overlap_stage_compute_as_long_as_they_read(session):
    run_offload_benchmark(replace(BENCHMARK, stages=["overlap"]), session, {})
    serial, overlapped = session.trials
    # 0.5 s of reading, in which 400e9 operations a second are enough for 200 tokens.
    assert serial.policy["micro_batch_tokens"] == 3 * 64
    assert serial.batch == 3 * 6
    assert (serial.policy["overlap"], overlapped.policy["overlap"]) == (False, True)


def test_what_was_not_measured_is_not_reported(session):
    report = run_offload_benchmark(
        replace(BENCHMARK, stages=["in memory"]), session, {"cpu": "a CPU"}
    )
    assert report.ratios == {"store_over_plain": 1}
    assert report.conditions["cpu"] == "a CPU"
    report.to_text()
