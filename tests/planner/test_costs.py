"""Every term against a calculation by hand: 100 requests of 200 / 11 tokens on round numbers."""

from dataclasses import replace

import pytest

from flexgen_helm.planner.block_load import OURS, UPSTREAM, BlockLoad, Shape
from flexgen_helm.planner.costs import Resource, phases
from flexgen_helm.planner.linear import VARIABLES, fractions_of
from flexgen_helm.specs.hardware import Curve, Surface
from flexgen_helm.specs.placement import Placement, Tier
from flexgen_helm.specs.policy import Policy
from tests.planner.machines import CPU, GPU, lengths, setup_of

SHAPE = Shape(
    micro_batch_size=25,
    num_micro_batches=2,
    micro_batch_tokens=1000,
    cached_tokens=10**6,
    cache_on_disk=False,
)
"""Two blocks of 50 requests, each with five prefill passes of 2,000 prompt tokens."""

AT_ONCE = replace(SHAPE, micro_batch_tokens=10_000)
"""The same with one pass of 10,000."""

PREFILL_TOKENS = 100 * 200
DECODE_TOKENS = 100 * 10
PARAMETERS = 10 * 12_000_000
CACHED_BYTES = 40_000
HIDDEN_BYTES = 10 * 2000
"""Of a token in all layers."""


def terms(name, resource, *, label="none", hardware=GPU, shape=SHAPE, execution=OURS, **changes):
    parts = phases(setup_of(hardware, label), hardware, lengths(**changes), shape, execution)
    [found] = [phase for phase in parts if phase.name == name]
    return found.terms[resource]


def constant(linear):
    assert not any(linear.slopes.values())
    return linear.constant


def cached_on(tier, linear):
    """With all of the cache on a tier, and nothing else that matters."""
    assert {placed for placed, _ in linear.slopes} <= {"cache"}
    return linear.at({("cache", other): float(other is tier) for other in Tier})


def slope(linear, placed, tier):
    assert linear.constant == 0
    return linear.slopes.get((placed, tier), 0.0)


def test_requests_are_cut_into_blocks():
    load = BlockLoad.of(lengths(), SHAPE, OURS)
    assert (load.num_blocks, load.sequences, load.prompt_tokens) == (2, 50, 10_000)
    assert (load.prefill_passes, load.decode_passes) == (5, 10)


@pytest.mark.parametrize(
    ("tokens", "passes"),
    [
        (10_000, 2 * 10),  # all at once
        (1000, 2 * 10 + 4),  # five passes: those of the last are four behind those of the first
        (250, 2 * 20 + 9),  # twenty, twice as many as they decode in
    ],
)
def test_prompts_of_several_passes_decode_one_after_another(tokens, passes):
    """Fewer at a time: products have fewer rows, and there are more steps."""
    shape = replace(SHAPE, micro_batch_tokens=tokens)
    load = BlockLoad.of(lengths(), shape, OURS)
    assert load.passes_with_decode == passes
    assert load.decoding == DECODE_TOKENS / passes
    found = terms("decode", Resource.COMPUTE, shape=shape)
    micro_batches = passes * -(-load.decoding // 25)
    rows = min(25, load.decoding)
    assert constant(found["steps"]) == pytest.approx(micro_batches * 10 * 1e-4)
    assert constant(found["products"]) == pytest.approx(
        2 * DECODE_TOKENS * PARAMETERS / (rows * 1e10)
    )
    assert constant(found["LM head"]) == pytest.approx(
        2 * DECODE_TOKENS * 2000 * 1000 / (load.decoding * 1e10)
    )
    upstream = BlockLoad.of(lengths(), shape, UPSTREAM)
    assert upstream.passes_with_decode == 2 * 10


def test_the_cache_limits_a_block():
    """A request has 200 + 10 tokens in it; 4,200 hold 20 of them."""
    load = BlockLoad.of(lengths(), replace(SHAPE, cached_tokens=4200), OURS)
    assert (load.num_blocks, load.sequences) == (5, 20)


def test_one_token_needs_no_cache():
    load = BlockLoad.of(lengths(new_tokens=1), replace(SHAPE, cached_tokens=1), OURS)
    assert (load.num_blocks, load.prefill_passes, load.decode_passes) == (1, 10, 0)
    upstream = BlockLoad.of(lengths(new_tokens=1), SHAPE, UPSTREAM)
    assert (upstream.num_blocks, upstream.prefill_passes) == (2, 1)


def test_products():
    """In the last layer keys and values, 2 of 12 parts, of all rows; of 200 rows one is read."""
    unread = 199 / 200
    part = 1 - (10 / 12) * unread / 10
    found = terms("prefill", Resource.COMPUTE)["products"]
    assert constant(found) == pytest.approx(2 * PREFILL_TOKENS * PARAMETERS * part / 1e12)
    found = terms("prefill", Resource.COMPUTE, execution=UPSTREAM)["products"]
    assert constant(found) == pytest.approx(2 * PREFILL_TOKENS * PARAMETERS / 1e12)
    # 25 rows: a rate in proportion to the rows, as 1e10 at 1 and 1e12 at 100 have it.
    found = terms("decode", Resource.COMPUTE)["products"]
    assert constant(found) == pytest.approx(2 * DECODE_TOKENS * PARAMETERS / 25e10)


def test_norms_and_copies():
    for phase, tokens in (("prefill", PREFILL_TOKENS), ("decode", DECODE_TOKENS)):
        found = terms(phase, Resource.COMPUTE)["norms and copies"]
        assert constant(found) == pytest.approx(tokens * HIDDEN_BYTES / 1e9)


def test_rates_depend_on_the_matrix():
    """A third as fast for matrices of 3 million numbers (those of queries, keys and values are one)
    and for one of a million; at four millions as the curve says. Layers are dequantized at the rate
    of their largest matrix."""
    slow, quick = Curve(((1.0, 1e12 / 3),)), Curve(((1.0, 1e12),))
    hardware = replace(
        GPU,
        product_flop_per_s=Surface(((3e6, slow), (4e6, quick))),
        dequantized_weights_per_s=Curve(((3e6, 1e9), (4e6, 2e9))),
    )
    found = terms("decode", Resource.COMPUTE, hardware=hardware, label="w4")
    flop = 2 * DECODE_TOKENS * 10 * 1e6
    assert constant(found["products"]) == pytest.approx(flop * (3 * 4 + 8) / 1e12)
    numbers = 2 * 10 * 10 * 1e6
    assert constant(found["dequantized weights"]) == pytest.approx(numbers * 12 / 2e9)


def test_attention_in_prefill():
    """Two products of 1,000 numbers for each pair, 100 positions before each on average."""
    found = terms("prefill", Resource.COMPUTE)["attention"]
    assert constant(found) == pytest.approx(4 * PREFILL_TOKENS * 100 * 1000 * 10 / 1e11)
    found = terms("prefill", Resource.COMPUTE, execution=UPSTREAM)["attention"]
    assert constant(found) == pytest.approx(4 * PREFILL_TOKENS * 200 * 1000 * 10 / 1e11)
    # A quarter of each prompt is its own: behind 150 shared tokens, 175 before it on average.
    found = terms("prefill", Resource.COMPUTE, unique_ratio=0.25)["attention"]
    assert constant(found) == pytest.approx(4 * 100 * 50 * 175 * 1000 * 10 / 1e11)


def test_attention_in_decode():
    """Own tokens are 200 and half of the 11 new ones, and there is room for another half; shared
    ones are read in products."""
    attended = DECODE_TOKENS * 211
    found = terms("decode", Resource.COMPUTE)
    seconds = attended * CACHED_BYTES / 1e11
    assert cached_on(Tier.DEVICE, found["attention"]) == pytest.approx(seconds)
    assert constant(found["shared attention"]) == 0
    found = terms("decode", Resource.COMPUTE, unique_ratio=0.25)
    seconds = DECODE_TOKENS * 61 * CACHED_BYTES / 1e11
    assert cached_on(Tier.HOST, found["attention"]) == pytest.approx(seconds)
    shared = 4 * DECODE_TOKENS * 150 * 1000 * 10
    assert constant(found["shared attention"]) == pytest.approx(shared / 1e11)


def test_room_for_tokens_to_come_is_read_in_memory():
    """Half of what a pool grows by, if there are many; none of it on disk, or by upstream."""
    found = terms("decode", Resource.COMPUTE, new_tokens=201)["attention"]
    tokens = 20 * DECODE_TOKENS
    for tier, attended in [(Tier.DEVICE, 332.5), (Tier.HOST, 332.5), (Tier.DISK, 300.5)]:
        seconds = tokens * attended * CACHED_BYTES / 1e11
        assert cached_on(tier, found) == pytest.approx(seconds)
    found = terms("decode", Resource.COMPUTE, execution=UPSTREAM)["attention"]
    assert constant(found) == pytest.approx(DECODE_TOKENS * 205.5 * CACHED_BYTES / 1e11)


def test_attention_on_the_host_keeps_the_cache_there():
    on_host = replace(SHAPE, attention="host")
    seconds = DECODE_TOKENS * 211 * CACHED_BYTES / 1e10
    found = terms("decode", Resource.COMPUTE, shape=on_host)["attention"]
    assert cached_on(Tier.HOST, found) == pytest.approx(seconds)
    found = terms("decode", Resource.TO_DEVICE, shape=on_host)
    assert cached_on(Tier.HOST, found["attention on the host"]) == pytest.approx(seconds)
    assert constant(found["cache"]) == 0


def test_rows_that_are_read_one_after_another_are_multiplied_together():
    """Where the cache is in the device's own memory, those on disk are multiplied as they are read.

    Keys of a sequence take 422 kB in a layer, of which 5.25 MB are read at once: an eightieth of
    the cache. Those of 50 sequences are read in five parts.
    """
    on_disk = replace(AT_ONCE, cache_on_disk=True, cached_tokens=10_500)
    for hardware, rows in ((GPU, 25), (CPU, 10)):
        found = terms("decode", Resource.COMPUTE, hardware=hardware, shape=on_disk)["steps"]
        micro_batches = 2 * 10 * 50 / rows
        assert constant(found) == pytest.approx(micro_batches * 10 * hardware.step_s)


def test_quantization():
    found = terms("prefill", Resource.COMPUTE, label="w4-kv4")
    assert constant(found["dequantized weights"]) == pytest.approx(2 * 5 * PARAMETERS / 1e10)
    assert constant(found["quantized cache"]) == pytest.approx(PREFILL_TOKENS * 20_000 / 1e9)
    found = terms("decode", Resource.COMPUTE, label="w4-kv4")
    assert constant(found["dequantized weights"]) == pytest.approx(2 * 10 * PARAMETERS / 1e10)
    read = DECODE_TOKENS * 211 * 20_000
    assert cached_on(Tier.DEVICE, found["dequantized cache"]) == pytest.approx(read / 1e10)
    # Upstream dequantizes for each of the two micro-batches.
    found = terms("decode", Resource.COMPUTE, label="w4", execution=UPSTREAM)
    assert constant(found["dequantized weights"]) == pytest.approx(2 * 2 * 10 * PARAMETERS / 1e10)


def test_few_rows_are_multiplied_with_codes_that_are_in_memory():
    """As far as they take no longer than the others, and what is dequantized for those."""
    packed = replace(CPU, packed_flop_per_s=Surface(((1.0, Curve(((1.0, 1e10), (50.0, 5e11)))),)))
    known = {"name": "decode", "resource": Resource.COMPUTE, "shape": AT_ONCE, "label": "w4"}
    dequantizing, found = (terms(**known, hardware=hardware) for hardware in (CPU, packed))
    for name, in_memory in (("products", 2 * DECODE_TOKENS * PARAMETERS / 2.5e11),
                            ("dequantized weights", 0)):  # fmt: skip
        assert slope(found[name], "weights", Tier.DEVICE) == pytest.approx(in_memory)
        assert slope(found[name], "weights", Tier.HOST) == pytest.approx(in_memory)
        assert slope(found[name], "weights", Tier.DISK) == constant(dequantizing[name])
    slow = replace(packed, packed_flop_per_s=Surface(((1.0, Curve(((1.0, 1e8), (50.0, 5e9)))),)))
    for changes in ({"hardware": slow}, {"hardware": packed, "label": "w8"}):
        assert constant(terms(**known | changes)["dequantized weights"])


def test_what_is_not_compressed_is_not_dequantized():
    found = terms("decode", Resource.COMPUTE)
    assert constant(found["dequantized weights"]) == constant(found["dequantized cache"]) == 0
    assert constant(found["quantized cache"]) == 0


def test_prompts_that_are_scored_go_through_the_head():
    """A fifth of 20,000 tokens, in products of more than a hundred rows at a time."""
    found = terms("prefill", Resource.COMPUTE, scored_part=0.2)
    assert constant(found["LM head"]) == pytest.approx(2 * 4100 * 2000 * 1000 / 1e12)
    part = 1 - (10 / 12) * (1 - 1 / 200 - 0.2) / 10
    assert constant(found["products"]) == pytest.approx(
        2 * PREFILL_TOKENS * PARAMETERS * part / 1e12
    )


def test_head_steps_and_drawing():
    found = terms("decode", Resource.COMPUTE, shape=AT_ONCE)
    assert constant(found["drawing"]) == pytest.approx(DECODE_TOKENS * 1e-5)
    assert constant(found["LM head"]) == pytest.approx(2 * DECODE_TOKENS * 2000 * 1000 / 50e10)
    assert constant(found["steps"]) == pytest.approx(2 * 2 * 10 * 10 * 1e-4)
    # Ten micro-batches of 1,000 prompt tokens a block.
    found = terms("prefill", Resource.COMPUTE)
    assert constant(found["drawing"]) == pytest.approx(100 * 1e-5)
    assert constant(found["steps"]) == pytest.approx(2 * 10 * 10 * 1e-4)


def test_steps_of_a_captured_pass_are_cheaper_in_decode():
    hardware = replace(GPU, captured_step_s=1e-6)
    for label, policy, step_s in (
        ("none", Policy(), 1e-6),
        ("none", Policy(cuda_graphs=False), 1e-4),
        ("none", Policy(activations=Placement(host=1)), 1e-4),
        ("top10", Policy(), 1e-4),
    ):
        setup = setup_of(hardware, label)
        shape = replace(SHAPE, captured=Shape.of(setup, policy, cached_tokens=1).captured)
        steps = {
            name: constant(terms(name, Resource.COMPUTE, hardware=hardware, shape=shape)["steps"])
            for name in ("prefill", "decode")
        }
        before = constant(terms("decode", Resource.COMPUTE)["steps"])
        assert steps["decode"] == pytest.approx(before * step_s / 1e-4)
        assert steps["prefill"] == constant(terms("prefill", Resource.COMPUTE)["steps"])


def test_each_part_of_a_cache_on_the_host_is_asked_for_in_each_layer():
    """Keys of 50 sequences of 211 tokens, in a layer: 21 MB, of which 10 are brought at once."""
    hardware, shape = replace(GPU, link_step_s=2e-3), replace(AT_ONCE, cached_tokens=20_000)
    steps = terms("decode", Resource.COMPUTE, hardware=hardware, shape=shape)["steps of the link"]
    for tier in (Tier.HOST, Tier.DISK):
        assert slope(steps, "cache", tier) == pytest.approx(2 * 10 * 3 * 10 * 2e-3)
    assert slope(steps, "cache", Tier.DEVICE) == 0
    on_host = replace(shape, attention="host")
    for changes in ({"hardware": replace(CPU, link_step_s=2e-3)}, {"shape": on_host}):
        found = terms("decode", Resource.COMPUTE, **{"hardware": hardware, **changes})
        assert not any(found["steps of the link"].slopes.values())


def test_sparse_attention_brings_all_keys_and_some_values():
    for label, part in (("top10", 0.55), ("w4-top10", 0.55), ("none", 1), ("kv4-top10", 1)):
        found = terms("decode", Resource.TO_DEVICE, label=label)["cache"]
        bits = {"kv4-top10": 16 * 36 / 2000}.get(label, 1)
        brought = part * bits * 211 * DECODE_TOKENS * CACHED_BYTES
        assert slope(found, "cache", Tier.HOST) == pytest.approx(brought / 1e10)


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_what_is_elsewhere_passes_the_link(tier):
    weights = 2 * PARAMETERS
    found = terms("decode", Resource.TO_DEVICE)
    assert slope(found["weights"], "weights", tier) == pytest.approx(2 * 10 * weights / 1e10)
    attended = {Tier.HOST: 211, Tier.DISK: 205.5}[tier] * DECODE_TOKENS * CACHED_BYTES
    assert slope(found["cache"], "cache", tier) == pytest.approx(attended / 1e10)
    hidden = DECODE_TOKENS * HIDDEN_BYTES
    assert slope(found["activations"], "activations", tier) == pytest.approx(hidden / 1e10)
    found = terms("prefill", Resource.TO_HOST)
    written = PREFILL_TOKENS * CACHED_BYTES
    assert slope(found["cache"], "cache", tier) == pytest.approx(written / 5e9)
    assert slope(found["cache"], "cache", Tier.DEVICE) == 0


def test_the_disk():
    found = terms("decode", Resource.DISK)
    weights = 2 * 10 * 2 * PARAMETERS
    assert slope(found["weights read"], "weights", Tier.DISK) == pytest.approx(weights / 1e9)
    assert slope(found["weights read"], "weights", Tier.HOST) == 0
    attended = DECODE_TOKENS * 205.5 * CACHED_BYTES
    assert slope(found["cache read"], "cache", Tier.DISK) == pytest.approx(attended / 1e9)
    written = DECODE_TOKENS * CACHED_BYTES
    assert slope(found["cache written"], "cache", Tier.DISK) == pytest.approx(written / 5e8)
    hidden = DECODE_TOKENS * HIDDEN_BYTES
    read, stored = found["activations read"], found["activations written"]
    assert slope(read, "activations", Tier.DISK) == pytest.approx(hidden / 1e9)
    assert slope(stored, "activations", Tier.DISK) == pytest.approx(hidden / 5e8)


def test_a_cache_on_disk_is_put_in_order():
    """Ten passes of two steps in ten layers copy none, one, ... nine positions of each sequence."""
    copied = 100 * 45 * CACHED_BYTES
    for hardware, resource in ((CPU, Resource.COMPUTE), (GPU, Resource.DISK)):
        found = terms("decode", resource, hardware=hardware, shape=AT_ONCE)
        ordered, steps = found["ordered cache"], found["steps of the disk"]
        assert slope(ordered, "cache", Tier.DISK) == pytest.approx(2 * copied / 1e10)
        assert slope(steps, "cache", Tier.DISK) == pytest.approx(2 * 10 * 2 * 10 * 1e-3)
        assert slope(ordered, "cache", Tier.HOST) == slope(steps, "cache", Tier.HOST) == 0
        found = terms("decode", resource, hardware=hardware, execution=UPSTREAM)
        assert not any(found["ordered cache"].slopes.values())
        assert not any(found["steps of the disk"].slopes.values())


def test_runs_of_positions_are_put_in_order_once():
    """The 1st of 40 passes copies none, two more times 16 copy 1 to 16, the others 1 to 7."""
    found = terms("decode", Resource.COMPUTE, hardware=CPU, new_tokens=41)
    copied = 100 * (2 * 136 + 28) * CACHED_BYTES
    assert slope(found["ordered cache"], "cache", Tier.DISK) == pytest.approx(2 * copied / 1e10)


def test_requests_of_one_token_store_nothing():
    found = terms("prefill", Resource.DISK, new_tokens=1)
    assert slope(found["cache written"], "cache", Tier.DISK) == 0
    found = terms("prefill", Resource.DISK, new_tokens=1, execution=UPSTREAM)
    assert slope(found["cache written"], "cache", Tier.DISK) > 0


def test_one_memory_has_no_link():
    found = terms("decode", Resource.TO_DEVICE, hardware=CPU)
    assert all(not any(linear.slopes.values()) for linear in found.values())


def test_a_phase_takes_as_long_as_its_busiest_resource_and_part_of_the_others():
    policy = Policy(weights=Placement(disk=1))
    for contention, overlap in ((0.01, True), (0.25, True), (1.0, False)):
        hardware = replace(GPU, contention=contention)
        shape = replace(SHAPE, overlap=overlap)
        [_, decode] = phases(setup_of(hardware), hardware, lengths(), shape)
        seconds = [
            sum(linear.at(fractions_of(policy)) for linear in by_name.values())
            for by_name in decode.terms.values()
        ]
        expected = max(seconds) + contention * (sum(seconds) - max(seconds))
        assert decode.seconds(fractions_of(policy)) == pytest.approx(expected)


def test_the_formulas_of_the_paper():
    """Appendix A.3, for a block of b sequences, s prompt and n new tokens, h1 wide: bytes and
    operations of upstream's way of running it."""
    s, n, h1, h2, num_layers, b = 200, 11, 1000, 4000, 10, 50
    shape = replace(SHAPE, micro_batch_tokens=25 * s)
    kwargs = {"shape": shape, "execution": UPSTREAM, "num_requests": b}
    layer_bytes = 8 * h1**2 + 4 * h1 * h2
    found = terms("prefill", Resource.TO_DEVICE, **kwargs)["weights"]
    assert slope(found, "weights", Tier.HOST) == pytest.approx(num_layers * layer_bytes / 1e10)
    found = terms("prefill", Resource.COMPUTE, **kwargs)
    flop = num_layers * b * (8 * s * h1**2 + 4 * s * h1 * h2)
    assert constant(found["products"]) == pytest.approx(flop / 1e12)
    assert constant(found["attention"]) == pytest.approx(num_layers * 4 * b * s**2 * h1 / 1e11)
    found = terms("prefill", Resource.TO_HOST, **kwargs)
    # The paper counts s + 1: the first new token's, which we count in decode.
    assert slope(found["cache"], "cache", Tier.HOST) == pytest.approx(
        num_layers * 4 * b * s * h1 / 5e9
    )
    assert slope(found["activations"], "activations", Tier.HOST) == pytest.approx(
        num_layers * 2 * s * h1 * b / 5e9
    )
    found = terms("decode", Resource.DISK, **kwargs)
    assert slope(found["cache read"], "cache", Tier.DISK) == pytest.approx(
        (n - 1) * num_layers * 4 * b * (s + n / 2) * h1 / 1e9
    )


def test_placements_on_the_device_move_nothing():
    fractions = fractions_of(Policy())
    assert {v for v in VARIABLES if fractions[v]} == {
        ("weights", Tier.DEVICE),
        ("cache", Tier.DEVICE),
        ("activations", Tier.DEVICE),
    }
    [prefill, decode] = phases(setup_of(GPU), GPU, lengths(), SHAPE)
    for phase in (prefill, decode):
        for resource in (Resource.TO_DEVICE, Resource.TO_HOST, Resource.DISK):
            assert sum(x.at(fractions) for x in phase.terms[resource].values()) == 0
