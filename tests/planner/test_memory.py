import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flexgen_helm.errors import BudgetError
from flexgen_helm.planner.memory import LEAST_TOKENS, nearest_policy, plan_memory
from flexgen_helm.planner.memory_terms import Filling, cache_per_token, fixed_terms
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.placement import Placement, Tier
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.workload import RequestLengths, Workload

OPT_1_3B = ModelSpec(
    num_layers=24,
    hidden_size=2048,
    num_heads=32,
    ffn_size=8192,
    vocab_size=50272,
    max_positions=2048,
    embedding_size=2048,
)
LAYER_BYTES = 12 * 2048 * 2048 * 2


def setup(label="none", **changes):
    return Setup(
        **{
            "spec": OPT_1_3B,
            "compression": Compression.parse(label),
            "dtype_bytes": 2,
            "unified": True,
            **changes,
        }
    )


def test_terms_by_hand():
    policy = Policy(
        weights=Placement(disk=1),
        activations=Placement(device=0.5, disk=0.5),
        micro_batch_tokens=512,
        num_micro_batches=4,
    )
    terms = fixed_terms(setup(), policy)
    assert terms["weights"] == {Tier.DEVICE: 0, Tier.HOST: 0, Tier.DISK: 24 * LAYER_BYTES}
    assert terms["staging buffers"] == {Tier.HOST: 2 * LAYER_BYTES, Tier.DEVICE: 0}
    assert terms["matrix in use"] == {Tier.DEVICE: 4 * 2048 * 2048 * 2}
    half = 4 * 512 * 2048 * 2 // 2
    assert terms["activations"] == {Tier.DEVICE: half, Tier.HOST: 0, Tier.DISK: half}
    assert terms["embeddings, norms and biases"] == {Tier.DEVICE: OPT_1_3B.num_other_parameters * 2}
    # 19 rows of the hidden size for each of the 512, and scores.
    assert terms["micro-batch"] == {Tier.DEVICE: 512 * 19 * 2048 * 2 + 3 * 2 * 4 * 2**20}


def requests(count, prompt_len, new_tokens, *, least_filled=1.0):
    lengths = RequestLengths(
        name="some",
        num_requests=count,
        prompt_len=prompt_len,
        max_prompt_len=prompt_len,
        new_tokens=new_tokens,
        least_filled=least_filled,
    )
    return Workload(name="some", scenarios=(lengths,))


def test_a_cache_on_disk_passes_through_memory():
    """Rows of a pass four times, as prefill has them; what is read at once seven times."""
    policy = Policy(cache=Placement(disk=1), micro_batch_tokens=512, num_micro_batches=4)
    terms = fixed_terms(setup(), policy)
    rows = 4 * 4 * 512 * 2048 * 2 / 0.8
    assert terms["cache on its way to disk"] == {Tier.HOST: rows + 7 * 32 * 2**20}
    assert fixed_terms(setup(), Policy())["cache on its way to disk"] == {Tier.HOST: 0}


def test_a_small_cache_on_disk_has_small_buffers():
    """Those of at least the 8 MB that one sequence may have, seven times."""
    policy = Policy(
        cache=Placement(disk=1), micro_batch_tokens=512, num_micro_batches=4, cache_bytes=10**8
    )
    rows = 4 * 4 * 512 * 2048 * 2 / 0.8
    assert fixed_terms(setup(), policy)["cache on its way to disk"] == {
        Tier.HOST: rows + 7 * 8 * 2**20
    }


@pytest.mark.parametrize(
    ("changes", "limit", "apart"),
    [
        ({}, None, True),
        ({}, "5GB", True),
        ({"num_micro_batches": 1}, None, False),  # prompts of a second pass meet those in decode
        ({"micro_batch_size": 10}, None, False),
        ({}, "3GB", False),  # 2.4 of it weights: some have to wait
    ],
)
def test_what_prefill_and_decode_take_of_a_block_alone_is_not_added(changes, limit, apart):
    """60 prompts of 32 tokens fill their part of a layer, or are read."""
    policy = Policy(
        **{
            "cache": Placement(disk=1),
            "weights": Placement(disk=1),
            "micro_batch_tokens": 512,
            "num_micro_batches": 4,
            "micro_batch_size": 512,
            **changes,
        }
    )
    rows = policy.num_micro_batches * 512
    filling, reading = 4 * rows * 2048 * 2, 7 * 32 * 2**20
    budget = MemoryBudget(disk=limit)
    plan = plan_memory(setup(), policy, budget, requests(60, 32, 100))
    taken = plan.fixed["cache on its way to disk"][Tier.HOST]
    assert taken == (max(filling, reading) if apart else filling + reading)


@pytest.mark.parametrize(
    ("count", "share"),
    [
        (40, 40),  # 21.6 MB of keys of a layer: one pool
        (100, 50),  # 54.1 MB: two
    ],
)
def test_reads_are_no_larger_than_what_there_is(count, share):
    """Eight of a pool's, which may have one sequence more than its share, and four of 16 tokens."""
    policy = Policy(cache=Placement(disk=1), micro_batch_tokens=512)
    workload = requests(count, 32, 100)
    sequences = (share + 1) * 2048 * 2
    plan = plan_memory(setup(), policy, MemoryBudget(), workload)
    taken = plan.fixed["cache on its way to disk"][Tier.HOST]
    assert taken == pytest.approx(min(sequences * (8 * 132 + 4 * 16), 7 * 32 * 2**20))
    apart = plan_memory(setup(unified=False), policy, MemoryBudget(), workload)
    assert apart.fixed["cache on its way to disk"] == {Tier.HOST: 7 * 64 * 2**20}


def test_sparse_attention_by_hand():
    """204.8 of 2048 positions, of 512 rows with 32 heads."""
    terms = fixed_terms(setup("top10"), Policy())
    assert terms["sparse attention"] == {Tier.DEVICE: 12 * (512 * 32 * 205 + 4 * 2**20)}
    more = cache_per_token(setup("top10"), Policy())[Tier.DEVICE] - 2 * 24 * 2048 * 2 / 0.8
    assert more == pytest.approx(6 * 32 + 0.1 * (12 * 32 + 2048 * 2))


def test_what_is_on_the_device_needs_no_staging():
    terms = fixed_terms(setup(), Policy())
    assert terms["staging buffers"] == {Tier.HOST: 0, Tier.DEVICE: 0}
    assert terms["matrix in use"] == {Tier.DEVICE: 8192 * 2048 * 2}, "of the LM head"


def test_what_comes_to_a_device_of_its_own_is_staged_there():
    """Two layers of weights; of keys and values four reads of both."""
    policy = Policy(weights=Placement(host=0.5, disk=0.5), cache=Placement(host=1))
    terms = fixed_terms(setup(unified=False), policy)
    assert terms["staging buffers"][Tier.DEVICE] == 2 * LAYER_BYTES
    assert terms["staging buffers"][Tier.HOST] < 2 * LAYER_BYTES
    assert terms["cache on its way to the device"] == {Tier.DEVICE: 2 * 4 * 64 * 2**20}


def test_a_captured_pass_keeps_memory_of_its_own():
    """Hidden states of 4 times 16 sequences, twice; in a layer, what 16 take of twelve widths."""
    policy = Policy(micro_batch_size=16, num_micro_batches=4)
    numbers = 2 * 4 * 16 * 2048 + 16 * (8 * 2048 + 8192)
    apart = setup(unified=False)
    assert fixed_terms(apart, policy)["captured pass"] == {Tier.DEVICE: numbers * 2 + 32 * 2**20}
    for other in (
        dataclasses.replace(policy, cuda_graphs=False),
        dataclasses.replace(policy, cache=Placement(host=1)),
        dataclasses.replace(policy, attention="host"),
    ):
        assert fixed_terms(apart, other)["captured pass"] == {Tier.DEVICE: 0}
    for other in (setup(), setup("top10", unified=False)):
        assert fixed_terms(other, policy)["captured pass"] == {Tier.DEVICE: 0}


def test_what_the_host_attends_to_stays_there():
    """The device has two micro-batches at once instead."""
    on_host = Policy(cache=Placement(host=1), attention="host")
    terms = fixed_terms(setup(unified=False), on_host)
    assert terms["cache on its way to the device"] == {Tier.DEVICE: 0}
    on_device = fixed_terms(setup(unified=False), dataclasses.replace(on_host, attention="device"))
    more = terms["micro-batch"][Tier.DEVICE] - on_device["micro-batch"][Tier.DEVICE]
    assert more == on_host.micro_batch_tokens * 2 * 2048 * 2


def test_compressed_layers_are_dequantized_one_at_a_time():
    terms = fixed_terms(setup("w4"), Policy())
    stored = OPT_1_3B.linear_weight_bytes(Compression(weight_bits=4), dtype_bytes=2)
    assert terms["weights"][Tier.DEVICE] == stored
    assert terms["matrix in use"] == {Tier.DEVICE: LAYER_BYTES + 8192 * 2048 * 2}


def test_a_cached_token_by_hand():
    token = 2 * 24 * 2048 * 2 / 0.8
    assert cache_per_token(setup(), Policy())[Tier.DEVICE] == token
    on_disk = cache_per_token(setup(), Policy(cache=Placement(disk=1)))
    assert on_disk[Tier.DISK] == token
    assert on_disk[Tier.HOST] == 0
    assert on_disk[Tier.DEVICE] == 0


def test_a_kernel_attends_to_what_is_stored():
    """Where there is one, nothing is dequantized but what sequences share."""
    packed = setup("w4-kv4", unified=False)
    kernel = dataclasses.replace(packed, has_attention_kernel=True)
    device, host = Policy(), Policy(attention="host", cache=Placement(host=1))
    dequantized = 2 * 2048 * 2 / 0.8
    for policy, tier, saved in ((device, Tier.DEVICE, dequantized), (host, Tier.HOST, 0)):
        without, taken = (cache_per_token(each, policy)[tier] for each in (packed, kernel))
        assert without - taken == pytest.approx(saved)
    sparse = dataclasses.replace(kernel, compression=Compression.parse("w4-kv4-top10"))
    assert not sparse.attends_packed("device")
    term = "shared cache that was read"
    filled = Filling(shared=100)
    assert fixed_terms(packed, device, filled)[term] == {Tier.DEVICE: 0}
    assert fixed_terms(kernel, device, filled)[term] == {Tier.DEVICE: 100 * 2 * 2048 * 2}


def test_what_does_not_fit_is_refused_with_what_does():
    budget = MemoryBudget(device="1GB")
    with pytest.raises(BudgetError) as refused:
        plan_memory(setup(), Policy(), budget)
    message = str(refused.value)
    assert "device and host memory of 1 GB is" in message
    assert "weights 2.42 GB" in message
    assert "this fits: micro_batch_tokens=" in message
    assert "weights={'disk': 1.0}" in message
    nearest = nearest_policy(setup(), Policy(), budget)
    assert plan_memory(setup(), nearest, budget).cache_tokens >= LEAST_TOKENS


def test_where_nothing_like_it_fits_another_policy_is_named():
    """The buffers of a cache on disk alone are more than is allowed."""
    spilling = Policy(cache=Placement(device=0.5, disk=0.5), micro_batch_tokens=64)
    with pytest.raises(BudgetError, match="this fits: .*cache={'device': 1"):
        plan_memory(setup("w4"), spilling, MemoryBudget(device="620MB"))


def test_a_cache_that_has_no_room_for_a_token_is_what_is_short():
    policy = Policy(cache=Placement(disk=1))
    with pytest.raises(BudgetError, match=r"disk memory of 1 kB .* short: a token in the KV cache"):
        plan_memory(setup(), policy, MemoryBudget(disk=1000))


def test_what_cannot_fit_is_refused_without():
    with pytest.raises(BudgetError, match="no policy of this model fits"):
        plan_memory(setup(), Policy(), MemoryBudget(device="100MB"))
    assert nearest_policy(setup(), Policy(), MemoryBudget(device="100MB")) is None


def test_no_more_rows_are_planned_for_than_there_are():
    """Of 70 times 10: a micro-batch of 512, and one of what is left."""
    policy = Policy(micro_batch_tokens=512, num_micro_batches=16)

    def fixed(workload=None):
        return plan_memory(setup(), policy, MemoryBudget(), workload).fixed

    expected = fixed_terms(
        setup(), dataclasses.replace(policy, num_micro_batches=2), Filling(longest=19, head_rows=70)
    )
    assert fixed(requests(70, 9, 10)) == expected
    scores = 3 * 2 * (4 * 2**20 - 512 * 32 * 19)
    assert fixed()["micro-batch"][Tier.DEVICE] - expected["micro-batch"][Tier.DEVICE] == scores
    assert fixed(requests(10**5, 2038, 10)) == fixed() == fixed_terms(setup(), policy)
    assert expected["prefixes in prefill"] == {Tier.DEVICE: 19 * 2 * 2048 * 2}
    assert fixed()["prefixes in prefill"] == {Tier.DEVICE: 2048 * 2 * 2048 * 2}
    assert fixed()["logits"] == {Tier.DEVICE: 128 * 50272 * 8}
    assert expected["logits"] == {Tier.DEVICE: 70 * 50272 * 8}
    few = Policy(micro_batch_tokens=4, num_micro_batches=1)
    assert fixed(requests(1, 3, 1)) == fixed_terms(setup(), few, Filling(longest=4, head_rows=1))


def test_without_a_limit_nothing_is_moved():
    assert nearest_policy(setup(), Policy(), MemoryBudget()) == Policy()
    assert plan_memory(setup(), Policy(), MemoryBudget()).cache_tokens is None


def test_a_device_of_its_own_has_a_limit_of_its_own():
    policy = Policy(weights=Placement(host=1))
    budget = MemoryBudget(device="1GB", host="3GB")
    assert plan_memory(setup(unified=False), policy, budget).cache_tokens
    with pytest.raises(BudgetError, match="host memory of 1 GB"):
        plan_memory(setup(unified=False), policy, MemoryBudget(device="1GB", host="1GB"))


def test_weights_that_do_not_fit_a_device_move_to_the_host_before_the_disk():
    budget = MemoryBudget(device="2GB", host="3GB")
    nearest = nearest_policy(setup(unified=False), Policy(), budget)
    assert nearest.weights.device > 0.2
    assert nearest.weights.device + nearest.weights.host == 1
    assert nearest.cache == Policy().cache
    budget = MemoryBudget(device="1.2GB", host="500MB")
    nearest = nearest_policy(setup(unified=False), Policy(), budget)
    assert nearest.weights.disk > 0.5
    assert nearest.weights.host == 0


@given(
    device=st.integers(10**8, 10**10),
    label=st.sampled_from(["none", "w4", "w4-kv4"]),
    disk=st.one_of(st.none(), st.integers(10**9, 10**11)),
)
def test_a_plan_never_takes_more_than_is_allowed(device, label, disk):
    budget = MemoryBudget(device=device, disk=disk)
    policy = nearest_policy(setup(label), Policy(), budget)
    if policy is None:
        return
    plan = plan_memory(setup(label), policy, budget)
    for tiers, allowed in (((Tier.DEVICE, Tier.HOST), device), ((Tier.DISK,), disk)):
        taken = sum(term.get(tier, 0) for term in plan.fixed.values() for tier in tiers)
        taken += plan.cache_tokens * sum(plan.per_token[tier] for tier in tiers)
        assert allowed is None or taken <= allowed


@given(st.integers(10**8, 10**10), st.integers(10**8, 10**10))
@example(830406656, 846938112)  # only the larger has room for a cache as large as it should be
def test_more_memory_is_never_worse(one, other):
    budgets = [MemoryBudget(device=size) for size in sorted((one, other))]
    less, more = (nearest_policy(setup(), Policy(), budget) for budget in budgets)
    if less is not None:
        assert more is not None
        few, many = (
            plan_memory(setup(), policy, budget).cache_tokens
            for policy, budget in zip((less, more), budgets, strict=True)
        )
        assert (
            few < LEAST_TOKENS <= many
            or more.weights.disk <= less.weights.disk
            or more.cache.disk < less.cache.disk
        )


def test_policies_are_otherwise_as_they_were():
    policy = Policy(overlap=False, attention="host", micro_batch_size=7)
    nearest = nearest_policy(setup(), policy, MemoryBudget(device="1GB"))
    changed = {
        field.name
        for field in dataclasses.fields(Policy)
        if getattr(nearest, field.name) != getattr(policy, field.name)
    }
    assert changed <= {"micro_batch_tokens", "weights", "cache", "activations"}


def test_requests_that_are_alike_need_no_padding():
    padded, exact = (
        plan_memory(setup(), Policy(), MemoryBudget(), workload).per_token[Tier.DEVICE]
        for workload in (requests(9, 50, 10, least_filled=filled) for filled in (0.8, 1.0))
    )
    assert exact == 2 * 24 * 2048 * 2  # keys and values of 24 layers, in two bytes
    assert padded == exact / 0.8


def one_block(num_requests, **changes):
    """Requests that all fit into one block."""
    lengths = RequestLengths(
        name="r",
        num_requests=num_requests,
        prompt_len=256,
        max_prompt_len=256,
        new_tokens=32,
        least_filled=1.0,
        **changes,
    )
    return Workload(name="r", scenarios=(lengths,))


def test_attention_takes_the_memory_of_a_micro_batch_that_came_before():
    """One after the other they take as much as the larger of both."""
    compressed = setup("w4-kv4")
    workload = one_block(4)
    plan = plan_memory(compressed, Policy(), MemoryBudget(), workload)
    tiers, cached = (Tier.DEVICE, Tier.HOST), 4 * 287
    prefill, decode = plan.times
    micro_batch = prefill.fixed["micro-batch"][Tier.DEVICE]
    dequantized = cached * 2 * 2048 * 2
    stored = cached * prefill.per_token[Tier.DEVICE]
    rest = sum(prefill.fixed[name].get(t, 0) for name in decode.fixed for t in tiers)
    assert dequantized < micro_batch
    assert plan.bytes_on(tiers, cached_tokens=cached) == pytest.approx(rest + stored + micro_batch)
    most = plan.bytes_on(tiers, cached_tokens=100 * cached)
    assert most == pytest.approx(rest + 100 * (stored + dequantized))


def test_large_blocks_of_memory_are_not_used_again():
    compressed = setup("w4-kv4")
    few, many = (
        plan_memory(compressed, Policy(), MemoryBudget(), one_block(count)) for count in (28, 29)
    )
    # 28 x 288 tokens, 2,048 numbers of two bytes each: 33.0 MB.
    assert (len(few.times), len(many.times)) == (2, 1)
    assert len(plan_memory(compressed, Policy(), MemoryBudget()).times) == 1


def test_scores_are_in_memory_where_attention_is_two_products():
    two, four = (
        fixed_terms(setup(dtype_bytes=size), Policy())["micro-batch"][Tier.DEVICE]
        for size in (2, 4)
    )
    assert two == (2048 * 19 * 2048 + 3 * (4 << 20)) * 2
    assert four == 2048 * 17 * 2048 * 4


@given(tokens=st.integers(0, 10**6), allowed=st.integers(2 * 10**9, 10**10))
def test_no_more_tokens_are_cached_than_a_budget_allows(tokens, allowed):
    plan = plan_memory(setup("w4-kv4"), Policy(), MemoryBudget(device=allowed), one_block(4))
    fits = plan.bytes_on((Tier.DEVICE, Tier.HOST), cached_tokens=tokens) <= allowed
    assert fits == (tokens <= plan.cache_tokens)
