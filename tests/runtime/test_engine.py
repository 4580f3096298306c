import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from flexgen_helm import Compression, Engine, GenerationRequest, Policy, SamplingParams
from flexgen_helm.errors import (
    CheckpointError,
    EngineClosedError,
    InvalidCompressionError,
    InvalidRequestError,
    InvalidSettingError,
    NumericsError,
)
from flexgen_helm.runtime.progress import Progress
from tests.conftest import byte_tokenizer, save_random_checkpoint


@pytest.fixture(scope="module")
def engine(checkpoint):
    with Engine.from_pretrained(checkpoint, dtype="float32", device="cpu") as engine:
        yield engine


def request(text="a prompt", *, prompt_logprobs=False, **sampling):
    prompt = byte_tokenizer()(text).input_ids
    return GenerationRequest(
        prompt_token_ids=prompt,
        sampling=SamplingParams(**sampling),
        prompt_logprobs=prompt_logprobs,
    )


def test_compression_may_be_a_label(checkpoint):
    with Engine.from_pretrained(checkpoint, dtype="float32", compression="w4-kv8") as engine:
        assert engine.description.compression == "w4-kv8"
    with pytest.raises(InvalidCompressionError, match="compression 'small' is not understood"):
        Engine.from_pretrained(checkpoint, compression="small")


@pytest.mark.parametrize("policy", ["bogus", {"weights": {"disk": 1}}])
def test_what_is_no_policy_is_not_taken_for_a_planned_one(checkpoint, policy):
    with pytest.raises(InvalidSettingError, match="is not understood: give a Policy, or 'auto'"):
        Engine.from_pretrained(checkpoint, dtype="float32", policy=policy)


MIXED = [
    request("first", max_tokens=5),
    request("the second is longer", max_tokens=1),
    request("third", max_tokens=0, prompt_logprobs=True),
    request("fourth", max_tokens=9, temperature=0.8, num_completions=3),
    request("first", max_tokens=5, stop=("q", "\n")),
    request("x" * 50, max_tokens=7, temperature=1.0, top_p=0.5, seed=3),
    request("fifth", max_tokens=6, presence_penalty=0.5, frequency_penalty=0.5),
]


def outputs(results):
    return [
        [(c.token_ids, c.text, c.finish_reason) for c in result.completions] for result in results
    ]


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 1), (2, 3), (64, 4)])
def test_results_do_not_depend_on_the_blocks(checkpoint, engine, size, count):
    policy = Policy(micro_batch_size=size, num_micro_batches=count)
    with Engine.from_pretrained(checkpoint, dtype="float32", policy=policy) as other:
        assert outputs(other.generate(MIXED)) == outputs(engine.generate(MIXED))
        assert outputs(other.generate(MIXED[::-1])[::-1]) == outputs(engine.generate(MIXED))


def test_completions_of_one_prompt_differ_and_repeat(engine):
    sampled = request(max_tokens=6, temperature=1.0, num_completions=4)
    [[*first]], [[*again]] = (
        outputs(engine.generate([sampled])),
        outputs(engine.generate([sampled])),
    )
    assert first == again
    assert len(set(first)) == 4


def test_sampled_tokens_follow_the_models_distribution(checkpoint, tmp_path):
    # A narrow initialisation spreads the probability over many tokens.
    model = save_random_checkpoint(tmp_path, byte_tokenizer(), init_std=0.1)
    draws = 10_000
    drawn = request(max_tokens=1, temperature=1.0, num_completions=draws)
    with Engine.from_pretrained(tmp_path, dtype="float32") as engine:
        [result] = engine.generate([drawn])
    tokens = [c.token_ids[0] if c.token_ids else 2 for c in result.completions]
    with torch.no_grad():
        logits = model(torch.tensor([drawn.prompt_token_ids])).logits[0, -1]
    expected = draws * logits.double().softmax(0).numpy()
    counts = np.bincount(tokens, minlength=len(expected))
    common = expected >= 5  # the usual validity limit of the test; the rest is one bin
    observed = [*counts[common], counts[~common].sum()]
    assert chisquare(observed, [*expected[common], expected[~common].sum()]).pvalue > 0.001


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_cache_compression_leaves_the_first_token_alone(checkpoint, engine, bits):
    compression = Compression(cache_bits=bits)
    requests = [request(text, max_tokens=12) for text in ("one", "two two", "three three three")]
    with Engine.from_pretrained(checkpoint, compression=compression, dtype="float32") as other:
        compressed = other.generate(requests)
    for plain, other in zip(engine.generate(requests), compressed, strict=True):
        assert plain.completions[0].logprobs[0] == other.completions[0].logprobs[0]
        assert plain.completions[0].logprobs[1:] != other.completions[0].logprobs[1:]


def test_eight_bits_stay_close(checkpoint, engine):
    scored = [request("a prompt of some length", max_tokens=0, prompt_logprobs=True)]
    compression = Compression(weight_bits=8, cache_bits=8)
    with Engine.from_pretrained(checkpoint, compression=compression, dtype="float32") as other:
        [close], [exact] = other.generate(scored), engine.generate(scored)
    difference = np.subtract(close.prompt_logprobs[1:], exact.prompt_logprobs[1:])
    assert 0 < np.abs(difference).mean() < 0.2


def test_four_bits_of_weights_and_cache_are_measured_below_0_30(tmp_path):
    sizes = {"hidden_size": 128, "ffn_dim": 512}
    save_random_checkpoint(tmp_path, byte_tokenizer(), **sizes)
    requests = [request("some prompt", max_tokens=5), request("another", max_tokens=9)]
    found = {}
    for label in ("none", "w4-kv4"):
        compression = Compression.parse(label)
        with Engine.from_pretrained(
            tmp_path, compression=compression, dtype="bfloat16", device="cpu"
        ) as engine:
            statistics = [result.statistics for result in engine.generate(requests)]
            cached = sum(s.cache_bytes for s in statistics) / sum(
                s.cached_tokens for s in statistics
            )
            found[label] = engine.description.linear_weight_bytes, cached
    for plain, compressed in zip(*found.values(), strict=True):
        assert compressed / plain <= 0.30


def test_statistics(engine):
    results = engine.generate(MIXED)
    sequences = sum(r.sampling.num_completions for r in MIXED)
    for asked, result in zip(MIXED, results, strict=True):
        statistics = result.statistics
        assert statistics.num_prompt_tokens == len(asked.prompt_token_ids)
        assert statistics.effective_batch == sequences
        assert statistics.prefill_s > 0
        assert 1_000_000 < statistics.prefill_peak_bytes <= statistics.peak_memory_bytes
        assert statistics.peak_host_bytes is None  # it is the same memory
        # The token drawn last is never fed back, so it is the only one without keys and values.
        needs_cache = asked.sampling.max_tokens > 1
        assert (statistics.cache_bytes > 0) == needs_cache == (statistics.cached_tokens > 0)
        assert statistics.cache_bytes == statistics.cached_tokens * 3 * 2 * 64 * 4
    assert results[0].statistics.cached_tokens == len(MIXED[0].prompt_token_ids) + 5 - 1


def test_results_are_reported_as_they_finish(engine):
    reported, seen = {}, []
    results = engine.generate(MIXED, on_result=reported.__setitem__, progress=seen.append)
    assert [reported[index] for index in range(len(MIXED))] == results
    assert [state.finished for state in seen] == list(range(1, len(MIXED) + 1))
    total = sum(result.statistics.num_generated_tokens for result in results)
    assert seen[-1] == Progress(finished=len(MIXED), total=len(MIXED), generated_tokens=total)


def test_progress_bar(engine, capsys):
    engine.generate([request(max_tokens=1)], progress=True)
    assert "1/1" in capsys.readouterr().err


def test_no_request(engine):
    assert engine.generate([]) == []


def test_prompt_of_exactly_all_positions(engine):
    full = GenerationRequest(prompt_token_ids=[5] * 256, sampling=SamplingParams(max_tokens=9))
    [result] = engine.generate([full])
    assert result.statistics.num_generated_tokens == 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([5] * 257, "prompt has 257 tokens, the model has 256 positions: shorten the prompt"),
        (
            [5, 267],
            "prompt_token_ids holds 267, the model knows ids 0 to 266: encode the prompt with",
        ),
        ([-1], "prompt_token_ids holds -1, the model knows ids 0 to 266"),
    ],
)
def test_impossible_prompts_are_refused_before_anything_runs(engine, prompt, message):
    finished = []
    with pytest.raises(InvalidRequestError, match=message):
        engine.generate(
            [request(), GenerationRequest(prompt_token_ids=prompt)],
            on_result=lambda *result: finished.append(result),
        )
    assert finished == []


def test_those_that_can_be_served_are(engine):
    batch = [request(), GenerationRequest(prompt_token_ids=[-1]), request()]
    errors = []
    results = engine.generate(batch, on_error=lambda *error: errors.append(error))
    assert [r.completions for r in results] == [r.completions for r in engine.generate(batch[::2])]
    [(index, error)] = errors
    assert index == 1
    assert "holds -1" in str(error)
    assert engine.generate(batch[1:2], on_error=lambda *_: None) == []


def test_overflow_is_an_error_and_no_answer(tmp_path):
    save_random_checkpoint(tmp_path, byte_tokenizer(), init_std=1e18)
    with (
        Engine.from_pretrained(tmp_path, dtype="float32") as engine,
        pytest.raises(
            NumericsError, match="computed NaN with dtype=.*float32 and compression=none"
        ),
    ):
        engine.generate([request()])


def test_closed_engine(checkpoint):
    engine = Engine.from_pretrained(checkpoint, dtype="float32")
    engine.close()
    with pytest.raises(EngineClosedError, match="is closed: load the model again"):
        engine.generate([request()])


def test_tokenizer_is_needed(tmp_path):
    save_random_checkpoint(tmp_path, byte_tokenizer())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer: put one of tokenizer.json"):
        Engine.from_pretrained(tmp_path)


def test_memory_is_planned_for_the_requests_at_hand(checkpoint):
    alike = [
        GenerationRequest(prompt_token_ids=[5 + i, *range(10, 20)], sampling=few)
        for i in range(3)
        for few in [SamplingParams(max_tokens=3)]
    ]
    longer = GenerationRequest(
        prompt_token_ids=[9, *range(10, 35)], sampling=SamplingParams(max_tokens=3)
    )
    with Engine.from_pretrained(checkpoint, dtype="float32") as engine:
        padded = engine.plan.per_token
        engine.generate(alike)
        exact = engine.plan.per_token
        engine.generate([*alike, longer])
        assert engine.plan.per_token == padded
    assert {tier: size / 0.8 for tier, size in exact.items()} == padded
