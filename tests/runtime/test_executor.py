"""The executor against the plain batched engine, on random tries."""

import dataclasses
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexgen_helm import Compression, Engine, GenerationRequest, Policy, SamplingParams
from flexgen_helm.batching import packing
from flexgen_helm.runtime import pool
from flexgen_helm.runtime.executor import BlockExecutor
from flexgen_helm.specs import chunks
from tests.conftest import byte_tokenizer, save_random_checkpoint
from tests.runtime.plain_executor import PlainExecutor

KEPT_TOKEN_BYTES = (2 * 3 + 1) * 64 * 4
"""Keys and values of three layers, and what comes out of the last, in float32."""

ALPHABET = st.integers(4, 6)
"""Three tokens only, so that random prompts share prefixes, contain and repeat each other."""


@st.composite
def prompts(draw):
    """Prompts that begin with one of a few beginnings, some of them long, some the whole prompt."""
    beginnings = draw(st.lists(st.lists(ALPHABET, max_size=70), min_size=1, max_size=3))
    ends = st.lists(ALPHABET, max_size=12)
    prompt = st.builds(lambda a, b, c: [2, *a, *b, *c], st.sampled_from(beginnings), ends, ends)
    return draw(st.lists(prompt, min_size=1, max_size=14))


@st.composite
def requests(draw):
    sampling = st.builds(
        SamplingParams,
        max_tokens=st.sampled_from([0, 1, 1, 2, 5, 9]),
        num_completions=st.sampled_from([1, 1, 1, 3]),
        temperature=st.sampled_from([0.0, 0.0, 1.0]),
        seed=st.integers(0, 3),
        stop=st.sampled_from([(), (), ("a",), ("\n", "%$")]),
    )
    return [
        GenerationRequest(
            prompt_token_ids=prompt,
            sampling=draw(sampling),
            prompt_logprobs=draw(st.booleans()),
        )
        for prompt in draw(prompts())
    ]


TIE = 1e-6
"""Of probability: what sums of float32 in another order may move."""

POLICIES = st.builds(
    Policy,
    micro_batch_size=st.sampled_from([1, 3, 256]),
    num_micro_batches=st.sampled_from([1, 2, 16]),
    micro_batch_tokens=st.sampled_from([2, 7, 40, 2048]),
    cache_bytes=st.sampled_from([1, 100_000, 2_000_000, None]),
    share_prefixes=st.sampled_from([True, True, True, False]),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(directory, byte_tokenizer(), num_hidden_layers=2)
    return directory


@pytest.fixture(scope="module")
def engine(directory):
    with Engine.from_pretrained(directory, dtype="float32") as engine:
        yield engine


def check(engine, batch, policy):
    """Compare results with the plain executor's, each completion up to a tie if there is one."""
    results = {}
    BlockExecutor(engine._open_model(), policy).run(dict(enumerate(batch)), results.__setitem__)
    plain = PlainExecutor(engine._open_model())
    expected = plain.run(batch)
    assert sorted(results) == list(range(len(batch)))
    for index, reference in enumerate(expected):
        result = results[index]
        ties = [
            check_completion(*both, plain.margins.get((index, number)))
            for number, both in enumerate(
                zip(result.completions, reference.completions, strict=True)
            )
        ]
        assert (result.prompt_logprobs is None) == (reference.prompt_logprobs is None)
        if reference.prompt_logprobs is not None:
            assert result.prompt_logprobs[0] is None
            assert result.prompt_logprobs[1:] == pytest.approx(
                reference.prompt_logprobs[1:], abs=1e-4
            )
        generated = (r.statistics.num_generated_tokens for r in (result, reference))
        assert any(ties) or len(set(generated)) == 1
    return results


def check_completion(actual, reference, margins):
    """Return whether the two part at a tie: a draw that the rounding of float32 decides."""
    equal = 0
    for pair in zip(actual.token_ids, reference.token_ids, strict=False):
        if len(set(pair)) == 2:
            break
        equal += 1
    assert actual.logprobs[:equal] == pytest.approx(reference.logprobs[:equal], abs=1e-4)
    if actual.token_ids != reference.token_ids:
        assert margins[equal] < TIE
        return True
    assert (actual.text, actual.finish_reason) == (reference.text, reference.finish_reason)
    return False


@settings(max_examples=100)
@given(
    batch=requests(),
    policy=POLICIES,
    min_segment=st.sampled_from([1, 8, 128, 10**9]),
    max_carried=st.sampled_from([0, 5, 64]),
    min_kept=st.sampled_from([1, 20, 64]),
    most_kept=st.sampled_from([0, 15, 30, 256]),
)
def test_output_equals_the_plain_engine(
    engine, batch, policy, min_segment, max_carried, min_kept, most_kept
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_SEGMENT_READS", min_segment)
        patch.setattr(packing, "MIN_DECODED_SEGMENT_READS", min_segment)
        patch.setattr(packing, "MAX_CARRIED", max_carried)
        patch.setattr(chunks, "MIN_KEPT", min_kept)
        patch.setattr(chunks, "MOST_KEPT_BYTES", most_kept * KEPT_TOKEN_BYTES)
        patch.setattr(pool, "GROWTH", 3)
        check(engine, batch, policy)


def like(count, *, seed=0, beginning_len=80, **sampling):
    """Requests of which each third has a beginning of its own."""
    random = Random(seed)
    beginnings = [[random.randrange(4, 200) for _ in range(beginning_len)] for _ in range(3)]
    return [
        GenerationRequest(
            prompt_token_ids=[2, *beginnings[i % 3], *random.choices(range(4, 9), k=1 + i % 9)],
            sampling=SamplingParams(**sampling),
        )
        for i in range(count)
    ]


def run(engine, batch, policy):
    results = {}
    BlockExecutor(engine._open_model(), policy).run(dict(enumerate(batch)), results.__setitem__)
    return [results[index] for index in range(len(batch))]


@pytest.mark.parametrize("label", ["w4", "kv4", "w3-kv2", "kv8"])
def test_compressed_output_equals_the_plain_engine(directory, label):
    """A key whose code is decided by the last bit of a float32 may get another code in sums taken
    in another order, as it may between any two batches; a few sequences in a hundred see one."""
    batch = like(120, max_tokens=6)
    compression = Compression.parse(label)
    with Engine.from_pretrained(directory, dtype="float32", compression=compression) as engine:
        results = run(engine, batch, Policy(cache_bytes=60_000, micro_batch_tokens=100))
        expected = PlainExecutor(engine._open_model()).run(batch)
    equal = [
        actual.completions[0].token_ids == other.completions[0].token_ids
        and actual.completions[0].logprobs == pytest.approx(other.completions[0].logprobs, abs=1e-4)
        for actual, other in zip(results, expected, strict=True)
    ]
    assert sum(equal) >= (114 if compression.cache_bits else 120)


@pytest.mark.parametrize("label", ["top10", "top60", "kv4-top30"])
@pytest.mark.parametrize("min_segment", [1, 10**9], ids=["shared", "own"])
def test_sparse_output_equals_the_plain_engine(directory, label, min_segment, monkeypatch):
    monkeypatch.setattr(packing, "MIN_DECODED_SEGMENT_READS", min_segment)
    batch = like(60, max_tokens=8)
    compression = Compression.parse(label)
    policy = Policy(cache_bytes=60_000, micro_batch_tokens=100, micro_batch_size=8)
    with Engine.from_pretrained(directory, dtype="float32", compression=compression) as engine:
        if compression.cache_bits is None:
            check(engine, batch, policy)
        results = run(engine, batch, policy)
        expected = PlainExecutor(engine._open_model()).run(batch)
    equal = [
        actual.completions[0].token_ids == other.completions[0].token_ids
        for actual, other in zip(results, expected, strict=True)
    ]
    assert sum(equal) >= (57 if compression.cache_bits else 60)


def test_sparse_attention_changes_what_is_decoded(directory, engine):
    batch = like(12, max_tokens=8)
    compression = Compression(attention_percent=1)
    with Engine.from_pretrained(directory, dtype="float32", compression=compression) as sparse:
        pairs = zip(sparse.generate(batch), engine.generate(batch), strict=True)
    logprobs = [[r.completions[0].logprobs for r in pair] for pair in pairs]
    assert all(one[0] == pytest.approx(other[0], abs=1e-5) for one, other in logprobs)  # prefill
    assert any(one[1:] != pytest.approx(other[1:], abs=1e-3) for one, other in logprobs)


def unique_tokens(batch):
    prompts = [request.prompt_token_ids for request in batch]
    return len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})


@pytest.mark.parametrize("cache_bytes", [1, 150_000, None])
@pytest.mark.parametrize("max_tokens", [1, 6])
def test_every_token_of_the_trie_is_computed_once(engine, cache_bytes, max_tokens, monkeypatch):
    monkeypatch.setattr(chunks, "MIN_KEPT", 1)
    batch = like(90, max_tokens=max_tokens)
    policy = Policy(cache_bytes=cache_bytes, micro_batch_tokens=50, num_micro_batches=3)
    costs = [result.statistics for result in run(engine, batch, policy)]
    assert sum(cost.computed_prompt_tokens for cost in costs) == pytest.approx(unique_tokens(batch))
    assert sum(cost.padding_rows for cost in costs) == 0


@settings(max_examples=60)
@given(
    batch=requests(), policy=POLICIES, limit=st.integers(1, 400), min_kept=st.sampled_from([1, 20])
)
def test_the_cache_never_has_more_tokens_than_it_may(engine, batch, policy, limit, min_kept):
    """Unless they are those of a single request: what prompts share is stored for each that reads
    it where few do, and what a block has left for the next is stored once more."""
    held, retire = [], BlockExecutor._retire

    def note_held(executor, blocks, on_result):
        pools = [*executor._pools, *(pool for block in blocks for pool in block.pools)]
        members = [member for pool in pools for member in pool.members]
        shared = {id(s): s.num_tokens for member in members for s in member.segments}
        if len({id(member.job) for member in members}) > 1:
            held.append(sum(member.capacity for member in members) + sum(shared.values()))
        retire(executor, blocks, on_result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MIN_KEPT", min_kept)
        patch.setattr(BlockExecutor, "_retire", note_held)
        token_bytes = engine._open_model().cache_format.bytes_per_token
        run(engine, batch, dataclasses.replace(policy, cache_bytes=limit * token_bytes))
    assert max(held, default=0) <= limit


def test_without_sharing_every_prompt_is_computed_whole(engine):
    batch = like(30, max_tokens=3)
    costs = [r.statistics for r in run(engine, batch, Policy(share_prefixes=False))]
    assert [c.computed_prompt_tokens for c in costs] == [len(r.prompt_token_ids) for r in batch]


def test_rows_of_decode_products(engine):
    batch = like(20, max_tokens=4)
    costs = [result.statistics for result in run(engine, batch, Policy(micro_batch_size=8))]
    decoded = sum(cost.num_generated_tokens - 1 for cost in costs)
    assert sum(cost.decode_rows for cost in costs) == decoded
    rows = decoded / sum(cost.decode_products for cost in costs)
    assert 4 < rows <= 8


def test_requests_of_one_token_fill_passes_and_keep_no_cache(engine):
    batch = like(12, max_tokens=4) + like(12, seed=1, max_tokens=1)
    costs = [result.statistics for result in run(engine, batch, Policy())]
    assert all(cost.cached_tokens > 0 for cost in costs[:12])
    assert all(cost.cached_tokens == cost.cache_bytes == 0 for cost in costs[12:])
    assert {cost.effective_batch for cost in costs} == {24}


def test_what_is_shared_is_stored_once(engine):
    batch = like(30, max_tokens=4, beginning_len=120)
    costs = [result.statistics for result in run(engine, batch, Policy())]
    plain = [r.statistics for r in run(engine, batch, Policy(share_prefixes=False))]
    beginnings = 3 * 121
    assert sum(c.cached_tokens for c in plain) - sum(c.cached_tokens for c in costs) == (
        pytest.approx(30 * 121 - beginnings, abs=30)
    )
