"""The executor against the plain batched engine, on random tries."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexgen_helm import Compression, Engine, GenerationRequest, Policy, SamplingParams
from flexgen_helm.batching import packing
from flexgen_helm.runtime import decode, executor
from tests.conftest import byte_tokenizer, save_random_checkpoint
from tests.runtime.plain_executor import PlainExecutor

ALPHABET = st.integers(4, 6)
"""Three tokens only, so that random prompts share prefixes, contain and repeat each other."""

SETTINGS = {"none": Compression(), "w4-kv4": Compression(weight_bits=4, cache_bits=4)}


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


POLICIES = st.builds(
    Policy,
    micro_batch_size=st.sampled_from([1, 3, 256]),
    num_micro_batches=st.sampled_from([1, 2, 16]),
    micro_batch_tokens=st.sampled_from([2, 7, 40, 2048]),
    cache_bytes=st.sampled_from([1, 100_000, 2_000_000, None]),
    share_prefixes=st.sampled_from([True, True, True, False]),
)


@pytest.fixture(scope="module", params=SETTINGS)
def engine(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(directory, byte_tokenizer(), num_hidden_layers=2)
    setting = SETTINGS[request.param]
    with Engine.from_pretrained(directory, dtype="float32", compression=setting) as engine:
        yield engine


def check(engine, batch, policy):
    results = {}
    executor.BlockExecutor(engine._model, policy).run(batch, results.__setitem__)
    expected = PlainExecutor(engine._model).run(batch)
    assert sorted(results) == list(range(len(batch)))
    for index, reference in enumerate(expected):
        result = results[index]
        assert [(c.token_ids, c.text, c.finish_reason) for c in result.completions] == [
            (c.token_ids, c.text, c.finish_reason) for c in reference.completions
        ]
        for completion, other in zip(result.completions, reference.completions, strict=True):
            assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert (result.prompt_logprobs is None) == (reference.prompt_logprobs is None)
        if reference.prompt_logprobs is not None:
            assert result.prompt_logprobs[0] is None
            assert result.prompt_logprobs[1:] == pytest.approx(
                reference.prompt_logprobs[1:], abs=1e-4
            )
        assert result.statistics.num_generated_tokens == reference.statistics.num_generated_tokens
    return results


@settings(max_examples=100)
@given(
    batch=requests(),
    policy=POLICIES,
    min_segment=st.sampled_from([1, 8, 128, 10**9]),
    max_carried=st.sampled_from([0, 5, 64]),
    min_kept=st.sampled_from([1, 20, 64]),
)
def test_output_equals_the_plain_engine(engine, batch, policy, min_segment, max_carried, min_kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_SEGMENT_READS", min_segment)
        patch.setattr(packing, "MIN_DECODED_SEGMENT_READS", min_segment)
        patch.setattr(packing, "MAX_CARRIED", max_carried)
        patch.setattr(executor, "MIN_KEPT", min_kept)
        patch.setattr(decode, "GROWTH", 3)
        check(engine, batch, policy)
