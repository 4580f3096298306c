"""Engines with weights elsewhere than in memory against one that has them all there."""

from itertools import product

import pytest

from flexgen_helm import (
    Compression,
    Engine,
    GenerationRequest,
    MemoryBudget,
    Policy,
    SamplingParams,
)
from flexgen_helm.errors import BudgetError
from flexgen_helm.model.checkpoint import read_spec
from flexgen_helm.planner import automatic, memory_terms
from flexgen_helm.planner.memory import plan_memory
from flexgen_helm.planner.plan import plan
from flexgen_helm.planner.setup import Setup
from flexgen_helm.runtime import pool_packing
from flexgen_helm.runtime.lengths import workload_of
from flexgen_helm.specs.placement import Placement, Tier

PLACEMENTS = {
    "device": Placement(device=1),
    "disk": Placement(disk=1),
    "host": Placement(host=1),
    "device and disk": Placement(device=0.5, disk=0.5),
    "all tiers": Placement(device=0.3, host=0.3, disk=0.4),
}
WHOLE = ("device", "host", "disk")


def requests():
    """Prompts with a beginning in common; some are scored, most go on for some tokens."""
    shared = [2, *(5 + i % 90 for i in range(40))]
    return [
        GenerationRequest(
            prompt_token_ids=[*shared, *(7 + (3 * i + j) % 80 for j in range(i))],
            sampling=SamplingParams(max_tokens=[0, 1, 6, 20][i % 4], num_completions=1 + i % 2),
            prompt_logprobs=i % 4 == 0,
        )
        for i in range(12)
    ]


def run(checkpoint, label, policy, **options):
    with Engine.from_pretrained(
        checkpoint,
        compression=Compression.parse(label),
        dtype="float32",
        policy=policy,
        **options,
    ) as engine:
        return engine.generate(requests())


def assert_equal(results, expected):
    for result, other in zip(results, expected, strict=True):
        assert result.prompt_logprobs == (
            other.prompt_logprobs and pytest.approx(other.prompt_logprobs, abs=1e-4)
        )
        for completion, reference in zip(result.completions, other.completions, strict=True):
            assert completion.token_ids == reference.token_ids
            assert completion.logprobs == pytest.approx(reference.logprobs, abs=1e-4)


BLOCKS = {
    "one micro-batch": {},
    "small micro-batches": {"micro_batch_tokens": 16, "micro_batch_size": 3},
    "few micro-batches": {
        "micro_batch_tokens": 64,
        "micro_batch_size": 4,
        "num_micro_batches": 2,
    },
    "no shared prefixes": {
        "micro_batch_tokens": 128,
        "num_micro_batches": 4,
        "share_prefixes": False,
    },
}

POLICIES = [
    Policy(
        weights=PLACEMENTS[weights],
        cache=PLACEMENTS[cache],
        activations=PLACEMENTS[activations],
        overlap=number % 2 == 0,
        attention=("device", "host")[number // 2 % 2],
        **BLOCKS[block],
    )
    for number, (weights, cache, activations, block) in enumerate(
        [
            # every tier for each of the three, in all combinations, ...
            *(
                (*tiers, list(BLOCKS)[(i + i // 4) % 4])
                for i, tiers in enumerate(product(WHOLE, WHOLE, WHOLE))
            ),
            # ... mixtures, each with all blocks, ...
            *product(["all tiers"], ["all tiers", "device and disk"], ["all tiers"], BLOCKS),
            *product(["device"], ["device and disk"], ["device", "device and disk"], BLOCKS),
            # ... and what is read ahead and written behind, alone.
            *product(["device"], ["disk"], ["device"], BLOCKS),
            *product(["device"], ["device"], ["disk"], BLOCKS),
            *product(["disk"], ["device"], ["device"], BLOCKS),
            *product(["disk"], ["disk"], ["disk"], BLOCKS),
            *product(["all tiers"], ["host"], ["host"], BLOCKS),
        ]
    )
]


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
def test_results_do_not_depend_on_where_anything_is(
    checkpoint, label, expected, policy, tmp_path_factory
):
    offload_dir = tmp_path_factory.getbasetemp() / "stores"
    assert_equal(run(checkpoint, label, policy, offload_dir=offload_dir), expected)


@pytest.mark.parametrize("sparse_label", ["top20", "w4-kv4-top20"])
def test_sparse_attention_is_the_same_wherever_the_cache_is(checkpoint, sparse_label, tmp_path):
    expected = run(checkpoint, sparse_label, Policy())
    for cache, attention in product(["disk", "host", "all tiers"], ["device", "host"]):
        policy = Policy(cache=PLACEMENTS[cache], attention=attention, micro_batch_size=3)
        assert_equal(run(checkpoint, sparse_label, policy, offload_dir=tmp_path), expected)


def test_sequences_need_no_prompt_of_their_own(checkpoint, tmp_path):
    """Completions of one prompt share all of it: each begins with an empty cache of its own."""
    request = GenerationRequest(
        prompt_token_ids=[2, *range(10, 150)],
        sampling=SamplingParams(max_tokens=90, num_completions=40, temperature=1.0),
    )
    completions = []
    for policy in (Policy(), Policy(cache=Placement(disk=1))):
        with Engine.from_pretrained(
            checkpoint, dtype="float32", policy=policy, offload_dir=tmp_path
        ) as engine:
            [result] = engine.generate([request])
            completions.append([completion.token_ids for completion in result.completions])
    assert completions[0] == completions[1]


@pytest.mark.parametrize("place", ["device", "disk"])
def test_short_sequences_of_a_pool_may_go_on_when_long_ones_have_ended(
    checkpoint, place, tmp_path, monkeypatch
):
    """A pool of long prompts with few new tokens and of short prompts with many."""
    monkeypatch.setattr(pool_packing, "LEAST_FILLED", 0.5)
    batch = [
        GenerationRequest(
            prompt_token_ids=[2, *range(5, 60 - 2 * i)],
            sampling=SamplingParams(max_tokens=2 + 3 * i),
        )
        for i in range(12)
    ]
    policy = Policy(cache=PLACEMENTS[place], share_prefixes=False)
    with Engine.from_pretrained(
        checkpoint, dtype="float32", policy=policy, offload_dir=tmp_path
    ) as engine:
        results = engine.generate(batch)
    assert [len(result.completions[0].token_ids) for result in results] == [
        2 + 3 * i for i in range(12)
    ]


def test_no_spill_is_left_behind(checkpoint, tmp_path):
    run(checkpoint, "none", Policy(cache=Placement(disk=1)), offload_dir=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_the_store_is_made_once(checkpoint, tmp_path):
    policy = Policy(weights=Placement(disk=1))
    run(checkpoint, "w4", policy, offload_dir=tmp_path)
    [store] = tmp_path.iterdir()
    times = {file: file.stat().st_mtime_ns for file in store.iterdir()}
    run(checkpoint, "w4", policy, offload_dir=tmp_path)
    assert {file: file.stat().st_mtime_ns for file in store.iterdir()} == times
    run(checkpoint, "w4-kv4", policy, offload_dir=tmp_path)
    assert [*tmp_path.iterdir()] == [store], "how the cache is stored does not change the weights"


def test_a_plan_keeps_to_a_budget(checkpoint, label, expected, tmp_path, monkeypatch):
    spare = 40_000_000  # what else these tests have in memory must not count as theirs
    monkeypatch.setattr(memory_terms, "LIBRARY_BYTES", memory_terms.LIBRARY_BYTES + spare)
    monkeypatch.setattr(automatic, "plan_apart", plan)  # another process would not know of it
    budget = MemoryBudget(device="106MB", disk="1GB")
    with Engine.from_pretrained(
        checkpoint,
        compression=Compression.parse(label),
        dtype="float32",
        budget=budget,
        offload_dir=tmp_path,
    ) as engine:
        tokens = engine.plan.cache_tokens
        assert tokens >= 1024
        assert engine.policy.micro_batch_tokens < 2048
        taken = engine.plan.bytes_on((Tier.DEVICE, Tier.HOST), cached_tokens=tokens)
        assert taken <= budget.device
        assert_equal(engine.generate(requests()), expected)


def test_a_policy_beyond_the_budget_is_refused_before_anything_is_loaded(checkpoint, tmp_path):
    with pytest.raises(BudgetError, match="this fits: micro_batch_tokens=8192"):
        Engine.from_pretrained(
            checkpoint,
            dtype="float32",
            policy=Policy(micro_batch_tokens=1 << 20),
            budget=MemoryBudget(device="140MB"),
            offload_dir=tmp_path,
        )
    assert not [*tmp_path.iterdir()]


def test_a_request_beyond_the_budget_is_refused_before_anything_is_computed(checkpoint):
    """There is room for more tokens than for any requests, as these are short."""
    policy, finished = Policy(micro_batch_tokens=16, num_micro_batches=1), []
    with Engine.from_pretrained(checkpoint, dtype="float32", policy=policy) as engine:
        fixed = sum(sum(term.values()) for term in engine.plan.fixed.values())
        per_token = sum(engine.plan.per_token.values())
    budget = MemoryBudget(device=int(fixed + 100.5 * per_token))
    sampling = SamplingParams(max_tokens=20)

    def both(size):
        prompts = ([2, *range(10, 10 + length)] for length in (80, size))
        return [GenerationRequest(prompt_token_ids=ids, sampling=sampling) for ids in prompts]

    with Engine.from_pretrained(
        checkpoint, dtype="float32", policy=policy, budget=budget
    ) as engine:
        assert engine.plan.cache_tokens == 100
        setup = Setup(
            spec=read_spec(checkpoint), compression=Compression(), dtype_bytes=4, unified=True
        )

        def room(size):
            workload = workload_of(both(size), engine.max_positions)
            return plan_memory(setup, policy, budget, workload).cache_tokens

        size = next(size for size in range(81, 300) if size + 20 > room(size))
        assert engine.generate(both(size - 1))
        message = f"needs {size + 20} tokens in the KV cache.* room for {room(size)}"
        with pytest.raises(BudgetError, match=message):
            engine.generate(both(size), on_result=lambda *known: finished.append(known))
        assert not finished
        others = engine.generate(both(size), on_error=lambda *known: finished.append(known))
        assert len(others) == 1
        assert [index for index, _ in finished] == [1]


def test_the_peak_on_disk_is_reported(checkpoint, tmp_path):
    [*_, last] = run(checkpoint, "none", Policy(cache=Placement(disk=1)), offload_dir=tmp_path)
    assert last.statistics.peak_disk_bytes > last.statistics.cache_bytes > 0
    [*_, last] = run(checkpoint, "none", Policy())
    assert last.statistics.peak_disk_bytes == 0


def test_waits_for_the_disk_are_part_of_the_time(checkpoint, tmp_path):
    on_disk = Policy(weights=Placement(disk=1), cache=Placement(disk=1), overlap=False)
    results = run(checkpoint, "none", on_disk, offload_dir=tmp_path)
    costs = [result.statistics for result in results]
    assert all(0 < cost.disk_wait_s < cost.prefill_s + cost.decode_s for cost in costs)
    assert all(cost.link_wait_s == 0 for cost in costs)
    in_memory = [result.statistics for result in run(checkpoint, "none", Policy())]
    assert all(cost.disk_wait_s == 0 for cost in in_memory)
