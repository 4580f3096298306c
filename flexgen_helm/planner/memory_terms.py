"""What a policy takes of memory, term by term, in bytes.

Shape letters: n rows of a micro-batch, e model width, f width of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf

from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.chunks import (
    CHUNK_SCORES,
    DEQUANTIZED_AT_ONCE,
    HEAD_COLUMNS,
    HEAD_ROWS,
    LEAST_FILLED,
    LINKED_READS_IN_MEMORY,
    MIN_KEPT,
    RUN_LEN,
    equal_share,
    kept_bytes,
    most_kept,
    spill_memory,
)
from flexgen_helm.specs.compression import quantized_bytes
from flexgen_helm.specs.placement import Placement, Tier, place_evenly
from flexgen_helm.specs.policy import Policy

Bytes = Mapping[Tier, float]
"""By tier; nothing on those that are not named."""

LIBRARY_BYTES = 56 << 20
"""Code of torch and oneDNN that comes into memory when it first runs, and holes in the heap: 20 to
40 MB as measured, and once more than that."""

DEQUANTIZING_BYTES = 6
"""Per number: its code as an integer and in float32, where its value takes its place, and a part of
its group's scale and zero."""

CUBLAS_BYTES = 32 << 20
"""What PyTorch lets cuBLAS work in, on the cards that it lets have most (Hopper)."""

MICRO_BATCH = "micro-batch"
"""The term of what a micro-batch takes in prefill."""


@dataclass(frozen=True, kw_only=True)
class Filling:
    """How full requests make what a policy allows."""

    least_filled: float = LEAST_FILLED
    """Part of the KV cache that holds tokens, at least; the rest is padding."""

    longest: float = inf
    """Tokens of a sequence, at most."""

    shared: float = inf
    """Tokens that several sequences have in common, at most."""

    longest_shared: float = 0
    """Tokens that any two prompts begin with alike, at most."""

    head_rows: float = inf
    """Rows that go through the LM head, at most."""

    apart: bool = False
    """Whether nothing is in decode while prompts are computed."""

    cached: float = inf
    """Tokens in the KV cache, with padding, at most; known, and stored in one pass, if `apart`."""


def fixed_terms(setup: Setup, policy: Policy, filling: Filling | None = None) -> dict[str, Bytes]:
    """Return what a policy takes, whatever is cached, at most or of requests that fill it so."""
    return _weight_terms(setup, policy) | working_terms(setup, policy, filling or Filling())


def _weight_terms(setup: Setup, policy: Policy) -> dict[str, Bytes]:
    """Matrices where they are, and what those elsewhere than on the device are brought into."""
    layer = matrix_bytes(setup)
    layers = [layer] * setup.spec.num_layers
    tiers = _placed(tuple(layer.items()), setup.spec.num_layers, policy.weights)
    placed = {
        tier: sum(
            sizes[name]
            for sizes, on in zip(layers, tiers, strict=True)
            for name in sizes
            if on[name] is tier
        )
        for tier in Tier
    }

    def most(*where: Tier) -> int:
        """Bytes of a layer on some tiers, at most."""
        return max(
            sum(size for name, size in sizes.items() if on[name] in where)
            for sizes, on in zip(layers, tiers, strict=True)
        )

    brought = 0 if setup.unified else most(Tier.HOST, Tier.DISK)
    staging = {Tier.HOST: 2 * most(Tier.DISK), Tier.DEVICE: 2 * brought}
    return {"weights": placed, "staging buffers": staging}


@lru_cache(maxsize=1024)
def _placed(
    layer: tuple[tuple[str, int], ...], num_layers: int, placement: Placement
) -> list[dict[str, Tier]]:
    """Place layers that are all alike; a search asks for the same ones again and again."""
    return place_evenly([dict(layer)] * num_layers, placement)


def working_terms(setup: Setup, policy: Policy, filling: Filling) -> dict[str, Bytes]:
    """Return what it takes beside weights and what is cached."""
    spec, width = setup.spec, setup.spec.hidden_size * setup.dtype_bytes
    rows = policy.micro_batch_tokens * policy.num_micro_batches
    return {
        "embeddings, norms and biases": {
            Tier.DEVICE: spec.num_other_parameters * setup.dtype_bytes
        },
        "matrix in use": {Tier.DEVICE: _matrix_in_use(setup, policy)},
        "activations": {tier: rows * width * policy.activations.on(tier) for tier in Tier},
        "cache on its way to disk": {Tier.HOST: _cache_on_its_way(setup, policy, filling)},
        "cache on its way to the device": {Tier.DEVICE: _cache_for_device(setup, policy)},
        "shared cache that was read": {Tier.DEVICE: _shared_reads(setup, policy, filling.shared)},
        "prefixes in prefill": {Tier.DEVICE: _prefixes(setup, filling.longest)},
        "prefix for the next block": {Tier.DEVICE: _kept_prefix(setup, policy, filling)},
        MICRO_BATCH: {Tier.DEVICE: _micro_batch(setup, policy, filling.longest)},
        "captured pass": {Tier.DEVICE: _captured_pass(setup, policy)},
        "sparse attention": {Tier.DEVICE: _sparse_attention(setup, policy)},
        # In float32, and their log-probabilities.
        "logits": {Tier.DEVICE: min(HEAD_ROWS, filling.head_rows) * spec.vocab_size * 8},
        "libraries": {
            Tier.HOST: LIBRARY_BYTES,
            Tier.DEVICE: 0 if setup.unified else CUBLAS_BYTES,
        },
    }


def cache_per_token(setup: Setup, policy: Policy, *, least_filled: float = LEAST_FILLED) -> Bytes:
    """Return what a token in the KV cache takes in decode, with its share of padding."""
    taken = dict(stored_per_token(setup, policy, least_filled))
    tier = attending(setup, policy.attention)
    taken[tier] += attended_per_token(setup, policy.attention, least_filled)
    return taken


def stored_per_token(setup: Setup, policy: Policy, least_filled: float) -> Bytes:
    """Return what a token in the KV cache takes where it is stored, with its share of padding."""
    token = token_bytes(setup, least_filled)
    return {tier: policy.cache.on(tier) * token for tier in Tier}


def token_bytes(setup: Setup, least_filled: float) -> float:
    """Return the bytes of a token in the KV cache, with its share of padding, at most."""
    return setup.cached_token_bytes / least_filled


def attended_per_token(setup: Setup, attention: str, least_filled: float) -> float:
    """Return what a cached token takes where it is attended to, wherever it is stored."""
    decompressed = 2 * setup.spec.hidden_size * setup.dtype_bytes / least_filled
    unpacks = setup.compression.cache_bits is not None and not setup.attends_packed(attention)
    return (decompressed if unpacks else 0) + _sparse_per_token(setup)


def attending(setup: Setup, attention: str) -> Tier:
    """Return the tier whose memory attention takes."""
    return Tier.HOST if attention == "host" and not setup.unified else Tier.DEVICE


def matrix_bytes(setup: Setup) -> dict[str, int]:
    """Return the bytes of a layer's matrices as stored."""
    bits, group_size = setup.compression.weight_bits, setup.compression.group_size
    return {
        name: rows * row_len * setup.dtype_bytes
        if bits is None
        else quantized_bytes(num_rows=rows, row_len=row_len, bits=bits, group_size=group_size)
        for name, (rows, row_len) in setup.spec.matrix_shapes.items()
    }


def _matrix_in_use(setup: Setup, policy: Policy) -> int:
    """What it takes to compute with a matrix, beside what is stored or read of it.

    A copy in the order of the processor's kernels: of a part of the LM head, which is read as it
    is, or of a matrix that was not brought into that order when it was loaded. Of compressed ones
    there is a layer of dequantized ones.
    """
    spec = setup.spec
    head = HEAD_COLUMNS * spec.embedding_size * setup.dtype_bytes
    if setup.compression.weight_bits is not None:
        numbers = [rows * row_len for rows, row_len in spec.linear_shapes.values()]
        at_once = min(DEQUANTIZED_AT_ONCE, max(numbers))
        return sum(numbers) * setup.dtype_bytes + max(head, at_once * DEQUANTIZING_BYTES)
    return max(head, *matrix_bytes(setup).values()) if policy.weights.disk else head


def _micro_batch(setup: Setup, policy: Policy, longest: float) -> float:
    """What a micro-batch takes in a layer, in prefill.

    Attention: hidden states, their norm, queries, keys and values (as projected, with those carried
    on from the micro-batch before, by head, and for the next), attended values, and queries, keys,
    values and attended values once more, in chains side by side: 17 rows. The MLP: hidden states,
    their norm, its output, their sum, and [n, f].

    Where attention is two products, keys and values in their order come on top, and scores, which
    are computed in chunks, if there are so many.
    """
    spec = setup.spec
    by_products = setup.unified and setup.dtype_bytes == 2
    attention = (19 if by_products else 17) * spec.hidden_size
    widths = max(attention, 4 * spec.hidden_size + spec.ffn_size)
    if attending(setup, policy.attention) is Tier.HOST:
        # One micro-batch is attended to while another is computed: its hidden states, and what it
        # attended to of shared positions.
        widths += 2 * spec.hidden_size
    seen = min(longest, spec.max_positions)
    scores = min(CHUNK_SCORES, policy.micro_batch_tokens * spec.num_heads * seen)
    chunks = 3 * scores if by_products else 0
    return (policy.micro_batch_tokens * widths + chunks) * setup.dtype_bytes


def _captured_pass(setup: Setup, policy: Policy) -> int:
    """What a CUDA graph of decode keeps to itself, whatever else is computed.

    Hidden states of all sequences, before and after the last layer; of a micro-batch, queries,
    keys, values, what is attended to of its own and of what is shared, their norm, [n, f] and its
    product; and memory that cuBLAS works in.
    """
    if setup.unified or not setup.captures_decode(policy):
        return 0
    spec = setup.spec
    widths = 8 * spec.hidden_size + spec.ffn_size
    numbers = 2 * policy.effective_batch * spec.hidden_size + policy.micro_batch_size * widths
    return numbers * setup.dtype_bytes + CUBLAS_BYTES


def _cache_on_its_way(setup: Setup, policy: Policy, filling: Filling) -> float:
    """Keys and values between memory and disk.

    Prefill fills those of a layer, of all rows of a pass, while those of the layer before are
    written. Decode has those in use, those ahead, and what is written meanwhile. A pool that is
    packed anew takes no more, as nothing is ahead then: keys, or values, as they were read, in
    order and where they go, and those on their way to disk.
    """
    if not policy.cache.disk:
        return 0
    spec = setup.spec
    position = setup.cached_token_bytes / (2 * spec.num_layers)
    rows = policy.micro_batch_tokens * policy.num_micro_batches
    planned = policy.spilled_at_once(spec.num_layers, linked=not setup.unified)
    written = 4 * rows * position / filling.least_filled
    at_once = max(planned, round(spec.max_positions * position))
    if not filling.apart:
        return written + spill_memory(at_once)
    if not setup.unified:
        return max(written, spill_memory(at_once))
    # As pools are made: of equal size, but for a sequence.
    largest = equal_share(filling.cached * position, planned) + filling.longest * position
    run = largest * min(1, RUN_LEN / filling.longest)
    return max(written, spill_memory(at_once, largest, run))


def _cache_for_device(setup: Setup, policy: Policy) -> float:
    """Keys and values that were brought to a device: those of a turn in use, and those ahead."""
    if setup.unified or policy.attention == "host" or policy.cache.device == 1:
        return 0
    spec = setup.spec
    longest = spec.max_positions * setup.cached_token_bytes / (2 * spec.num_layers)
    return LINKED_READS_IN_MEMORY * max(
        policy.spilled_at_once(spec.num_layers, linked=True), longest
    )


def _prefixes(setup: Setup, longest: float) -> float:
    """Keys and values of a layer, as computed, that are still to be read by prompts to come.

    Prompts come in the order of their tree: those of one of them, at most.
    """
    return min(longest, setup.spec.max_positions) * 2 * setup.spec.hidden_size * setup.dtype_bytes


def _kept_prefix(setup: Setup, policy: Policy, filling: Filling) -> float:
    """What a block leaves for the next one, and what the one before has left for it."""
    spec = setup.spec
    shape = spec.hidden_size, spec.num_layers, setup.dtype_bytes
    kept = min(filling.longest_shared, spec.max_positions, most_kept(*shape))
    if filling.apart or not policy.share_prefixes or kept < MIN_KEPT:
        return 0
    return 2 * kept * kept_bytes(*shape)


def _shared_reads(setup: Setup, policy: Policy, shared: float) -> float:
    """Keys and values of a layer that were read for the first micro-batch of those that share them.

    Those that were dequantized are among what attention takes of each cached token, unless it takes
    nothing, as kernels attend to what a sequence has of its own.
    """
    in_place = policy.cache.disk == 0 and (setup.unified or policy.cache.device == 1)
    if in_place and not setup.attends_packed(policy.attention):
        return 0
    spec = setup.spec
    return min(shared, spec.max_positions) * 2 * spec.hidden_size * setup.dtype_bytes


def _sparse_attention(setup: Setup, policy: Policy) -> int:
    """Largest scores of the rows of a micro-batch, twice and as they are joined; shared scores."""
    percent, spec = setup.compression.attention_percent, setup.spec
    if percent is None:
        return 0
    most = -(-spec.max_positions * percent // 100)
    return 12 * (policy.micro_batch_size * spec.num_heads * most + CHUNK_SCORES)


def _sparse_per_token(setup: Setup) -> float:
    """Scores of a cached token, twice, and of those attended to also scores, places and values."""
    percent, spec = setup.compression.attention_percent, setup.spec
    if percent is None:
        return 0
    attended = 12 * spec.num_heads + spec.hidden_size * setup.dtype_bytes
    return (setup.dtype_bytes + 4) * spec.num_heads + percent / 100 * attended


def total(terms: Mapping[str, Bytes], tiers: tuple[Tier, ...]) -> float:
    """Return the bytes of terms on some tiers together."""
    return sum(term.get(tier, 0) for term in terms.values() for tier in tiers)
