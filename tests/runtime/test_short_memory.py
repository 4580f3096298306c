"""Estimates that turn out wrong: smaller micro-batches and a warning, and the same results."""

import pytest
import torch

from flexgen_helm import Engine, GenerationRequest, MemoryBudget, Policy, SamplingParams
from flexgen_helm.model import opt
from flexgen_helm.offload.spill import Spill
from flexgen_helm.runtime import memory_watch
from flexgen_helm.runtime.memory_watch import MemoryWatch
from flexgen_helm.specs.placement import Placement

CPU = torch.device("cpu")


def requests(count=20):
    """Some share a beginning, some are drawn at random."""
    return [
        GenerationRequest(
            prompt_token_ids=[2, *range(5, 20 + i), 30 + i],
            sampling=SamplingParams(max_tokens=1 + i % 9, temperature=float(i % 2)),
        )
        for i in range(count)
    ]


def completions(results):
    return [completion.token_ids for result in results for completion in result.completions]


def generate(checkpoint, **options):
    with Engine.from_pretrained(checkpoint, dtype="float32", **options) as engine:
        return completions(engine.generate(requests())), engine


@pytest.fixture(scope="module")
def expected(checkpoint):
    return generate(checkpoint)[0]


@pytest.fixture
def limited(monkeypatch):
    """Memory for so many rows of a layer."""

    def limit(rows, error):
        project = opt.project

        def limited_project(spec, part, hidden):
            if len(hidden) > rows:
                raise error
            return project(spec, part, hidden)

        monkeypatch.setattr(opt, "project", limited_project)

    return limit


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("no memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(12, "Cannot allocate memory"),
    ],
)
@pytest.mark.parametrize("cache", [Placement(device=1), Placement(disk=1)], ids=["memory", "disk"])
def test_memory_that_is_full_makes_micro_batches_smaller(
    checkpoint, expected, limited, error, cache, tmp_path
):
    limited(40, error)
    with pytest.warns(UserWarning, match="memory is short") as warned:
        actual, engine = generate(checkpoint, policy=Policy(cache=cache), offload_dir=tmp_path)
    assert actual == expected
    assert "micro_batch_size=8, micro_batch_tokens=32 and" in str(warned[-1].message)
    assert (engine.policy.micro_batch_size, engine.policy.micro_batch_tokens) == (8, 32)


def test_results_are_reported_once(checkpoint, expected, monkeypatch):
    """Memory is short when some requests have been answered and others are in decode."""
    project, reported, errors = opt.project, [], [MemoryError("no memory")]

    def late(*args):
        if reported and errors:
            raise errors.pop()
        return project(*args)

    monkeypatch.setattr(opt, "project", late)
    with (
        Engine.from_pretrained(checkpoint, dtype="float32") as engine,
        pytest.warns(UserWarning, match="no memory"),
    ):
        results = engine.generate(requests(), on_result=lambda i, _: reported.append(i))
    assert sorted(reported) == list(range(20))
    assert completions(results) == expected
    assert {result.statistics.policy for result in results} == {
        Policy().brief, engine.policy.brief
    }  # fmt: skip


def test_what_does_not_fit_at_all_fails_as_it_is(checkpoint, limited):
    limited(0, MemoryError("no memory at all"))
    with (
        pytest.warns(UserWarning, match="memory is short .no memory at all"),
        pytest.raises(MemoryError, match="no memory at all"),
    ):
        generate(checkpoint)


def test_other_errors_are_not_taken_for_it(checkpoint, limited):
    limited(0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        generate(checkpoint)


def test_a_spill_that_is_full_makes_the_cache_smaller(checkpoint, expected, monkeypatch, tmp_path):
    made = Spill.__init__

    def small(self, directory, **options):
        made(self, directory, **{**options, "limit_bytes": 400_000})

    monkeypatch.setattr(Spill, "__init__", small)
    policy = Policy(cache=Placement(disk=1), cache_bytes=10_000_000)
    with pytest.warns(UserWarning, match="memory is short .* bytes are needed on disk, 400000"):
        actual, _ = generate(checkpoint, policy=policy, offload_dir=tmp_path)
    assert actual == expected


def test_use_beyond_the_budget_is_noticed_until_it_has_doubled(monkeypatch):
    """Of 100 bytes, 80 of them to be used; of these a twentieth may be exceeded."""
    peaks = iter([50, 90, 104, 120, 120, 140, 150])
    monkeypatch.setattr(memory_watch, "peak_memory_bytes", lambda _: next(peaks))
    watch = MemoryWatch(CPU, 20, 80)
    assert [watch.new_excess() for _ in range(6)] == [0, 0, 20, 0, 0, 50]


def test_use_beyond_the_budget_makes_micro_batches_smaller(checkpoint, expected, monkeypatch):
    budget = MemoryBudget(device="1GB")
    peaks = iter([0, 1 << 40, *[1 << 40] * 1000])
    monkeypatch.setattr(memory_watch, "peak_memory_bytes", lambda _: next(peaks))
    with pytest.warns(UserWarning, match="more were used than the budget allows") as warned:
        actual, engine = generate(checkpoint, budget=budget)
    assert actual == expected
    assert len(warned) == 1
    assert engine.policy.micro_batch_size == Policy().micro_batch_size // 2
