"""Passes of decode that repeat, captured and replayed, against those computed step by step."""

import warnings
from dataclasses import replace

import pytest
import torch

from flexgen_helm import Engine, GenerationRequest, Policy, SamplingParams
from flexgen_helm.runtime import loader
from flexgen_helm.runtime.cuda_graphs import CudaCapture, capture_on
from flexgen_helm.runtime.repeated_passes import RepeatedPasses
from tests.runtime.fake_capture import FakeCapture
from tests.runtime.test_offloading import BLOCKS, PLACEMENTS, assert_equal, requests, run


@pytest.fixture
def capture(monkeypatch):
    made = FakeCapture()
    monkeypatch.setattr(loader, "capture_on", lambda _: made)
    return made


@pytest.mark.parametrize("block", BLOCKS)
def test_replayed_passes_give_the_same(checkpoint, label, expected, block, capture):
    assert_equal(run(checkpoint, label, Policy(**BLOCKS[block])), expected)
    assert 0 < capture.captured < capture.replayed


def test_one_capture_serves_all_tokens_until_a_sequence_ends(checkpoint, capture):
    """Three of twelve tokens, two of twenty; what is left of them is packed anew."""
    prompts = [[2, *range(5, 8 + i)] for i in range(5)]
    lengths = [12, 12, 12, 20, 20]
    with Engine.from_pretrained(checkpoint, dtype="float32", policy=Policy()) as engine:
        results = engine.generate(
            [
                GenerationRequest(prompt_token_ids=p, sampling=SamplingParams(max_tokens=n))
                for p, n in zip(prompts, lengths, strict=True)
            ]
        )
    assert [len(result.completions[0].token_ids) for result in results] == lengths
    assert capture.captured == 2
    assert capture.replayed == (12 - 1 - 1) + (20 - 12 - 1)


def test_sequences_that_end_leave_idle_rows_behind(checkpoint, capture):
    """Until so many have ended that the pool is packed anew: then two are left, for two tokens."""
    prompts = [[5 + i, 6, 7, 8] for i in range(8)]
    lengths = range(30, 38)
    asked = [
        GenerationRequest(prompt_token_ids=p, sampling=SamplingParams(max_tokens=n))
        for p, n in zip(prompts, lengths, strict=True)
    ]

    def generate(policy):
        with Engine.from_pretrained(checkpoint, dtype="float32", policy=policy) as engine:
            return engine.generate(asked)

    results = generate(Policy())
    assert_equal(results, generate(Policy(cuda_graphs=False)))
    assert [len(result.completions[0].token_ids) for result in results] == [*lengths]
    assert (capture.captured, capture.replayed) == (1, 35 - 2)
    idle = sum(35 - length for length in range(30, 35))
    padding = sum(result.statistics.padding_rows for result in results)
    assert padding == pytest.approx(idle)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(cuda_graphs=False),
        Policy(cache=PLACEMENTS["disk"]),
        Policy(weights=PLACEMENTS["device and disk"]),
        Policy(activations=PLACEMENTS["disk"]),
    ],
    ids=["told so", "cache", "weights", "activations"],
)
def test_what_is_elsewhere_is_not_captured(checkpoint, policy, capture, tmp_path):
    run(checkpoint, "none", policy, offload_dir=tmp_path)
    assert capture.captured == 0


def test_sparse_attention_is_not_captured(checkpoint, capture):
    run(checkpoint, "top20", Policy())
    assert capture.captured == 0


def test_where_capturing_fails_decode_goes_on_without(checkpoint, expected, label, capture):
    capture.failure = RuntimeError("operation not permitted when stream is capturing")
    with pytest.warns(UserWarning, match="not captured as a CUDA graph .*not permitted") as warned:
        assert_equal(run(checkpoint, label, Policy()), expected)
    assert len([w for w in warned if "CUDA graph" in str(w.message)]) == 1
    assert capture.captured == 0


def test_memory_that_is_short_is_taken_from_what_was_captured_first(
    checkpoint, expected, label, capture, monkeypatch
):
    """Micro-batches stay as they are."""
    run_once, failures = RepeatedPasses.run, [MemoryError("short")]

    def run_short(self, *args):
        if self._replay is not None and failures:
            raise failures.pop()
        return run_once(self, *args)

    monkeypatch.setattr(RepeatedPasses, "run", run_short)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(run(checkpoint, label, Policy()), expected)
    assert not failures
    assert capture.captured == 1


def test_a_processor_takes_no_graphs():
    assert capture_on(torch.device("cpu")) is None


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_gpu_replays_what_it_computes_step_by_step(checkpoint, cuda, label, dtype, monkeypatch):
    made = []

    class Counted(CudaCapture):
        def __call__(self, compute):
            made.append(super().__call__(compute))
            return made[-1]

    monkeypatch.setattr(loader, "capture_on", Counted)

    def tokens(policy):
        with Engine.from_pretrained(
            checkpoint, compression=label, dtype=dtype, device="cuda", policy=policy
        ) as engine:
            results = engine.generate(requests())
        return [c.token_ids for result in results for c in result.completions]

    policy = Policy()
    replayed = tokens(policy)
    assert made
    assert replayed == tokens(replace(policy, cuda_graphs=False))
