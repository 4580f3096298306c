"""4-bit weights that a processor multiplies few rows with as they are."""

from dataclasses import replace

import pytest
import torch

from flexgen_helm import Compression, Engine, GenerationRequest, SamplingParams
from flexgen_helm.model.checkpoint import read_spec
from flexgen_helm.offload import weights
from flexgen_helm.planner.rates import Rates
from flexgen_helm.quant import prepacked
from flexgen_helm.specs.hardware import Curve
from flexgen_helm.specs.placement import Placement
from flexgen_helm.specs.policy import Policy
from tests.conftest import byte_tokenizer, save_random_checkpoint
from tests.planner.machines import CPU, flat, setup_of

MEASURED = replace(
    CPU,
    product_flop_per_s=flat(4e9),
    packed_flop_per_s=flat(2e9),
    dequantized_weights_per_s=Curve(((1.0, 1.99e7),)),
)
pytestmark = pytest.mark.skipif(
    not prepacked.reads(4, 64, torch.bfloat16),
    reason="this processor reads 4-bit codes in another order",
)
COMPRESSION = Compression(weight_bits=4)
NUM_LAYERS = 3
MATRICES = 4
"""Of a layer."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed")
    save_random_checkpoint(directory, byte_tokenizer(), init_std=0.05, num_hidden_layers=NUM_LAYERS)
    return directory


def generate(checkpoint, requests, dtype="bfloat16", **options):
    with Engine.from_pretrained(
        checkpoint, compression=COMPRESSION, dtype=dtype, device="cpu", **options
    ) as engine:
        return engine.generate(requests)


def request(num_tokens, max_tokens=1):
    ids = torch.randint(4, 250, (num_tokens - 1,), generator=torch.Generator().manual_seed(1))
    sampling = SamplingParams(max_tokens=max_tokens)
    return GenerationRequest(
        prompt_token_ids=[2, *ids.tolist()], sampling=sampling, prompt_logprobs=True
    )


@pytest.fixture
def calls(monkeypatch):
    """Products with codes, and weights that were dequantized, in either order."""
    found = {"multiplied": 0, "dequantized": 0}

    def counted(name, function):
        def call(*args):
            found[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(prepacked, "multiply", counted("multiplied", prepacked.multiply))
    for owner in (prepacked, weights):
        monkeypatch.setattr(owner, "dequantize", counted("dequantized", owner.dequantize))
    return found


@pytest.mark.parametrize(
    ("rows", "few"), [(prepacked.MOST_ROWS_BESIDE_MATRIX_UNITS, True), (200, False)]
)
def test_rows_of_a_pass_decide(checkpoint, calls, rows, few):
    generate(checkpoint, [request(rows)])
    products = NUM_LAYERS * MATRICES
    assert calls == {"multiplied": products * few, "dequantized": products * (not few)}


def test_a_calibration_decides_how_many_are_few(checkpoint, calls):
    """As many rows as `planner.rates` says; here twice as fast without codes, once they are not."""
    few = Rates(setup_of(MEASURED, "w4", read_spec(checkpoint)), MEASURED).few_rows(1024)
    assert prepacked.MOST_ROWS < few < 200
    for rows, multiplied in ((few, True), (few + 1, False)):
        calls.update(multiplied=0, dequantized=0)
        generate(checkpoint, [request(rows)], hardware=MEASURED)
        products = NUM_LAYERS * MATRICES
        assert calls == {
            "multiplied": products * multiplied,
            "dequantized": products * (not multiplied),
        }


def test_that_of_another_dtype_or_processor_decides_nothing(checkpoint, calls):
    """Not even where it says that codes are always to be multiplied with."""
    always = replace(MEASURED, packed_flop_per_s=flat(1e15))
    generate(checkpoint, [request(200)], hardware=replace(always, dtype="float32"))
    assert calls["multiplied"] == 0
    generate(checkpoint, [request(200)], hardware=always, dtype="float32")
    assert calls["multiplied"] == 0


def test_what_is_on_disk_is_dequantized(checkpoint, calls, tmp_path):
    policy = Policy(weights=Placement(disk=1))
    generate(checkpoint, [request(20, 3)], policy=policy, offload_dir=tmp_path)
    assert calls == {"multiplied": 0, "dequantized": 3 * NUM_LAYERS * MATRICES}


def test_both_are_as_near_to_float32(checkpoint, monkeypatch):
    def logprobs(**options):
        [result] = generate(checkpoint, [request(30)], **options)
        return torch.tensor(result.prompt_logprobs[1:])

    exact, packed = logprobs(dtype="float32"), logprobs()
    monkeypatch.setattr(prepacked, "few_rows", lambda *_: 0)
    dequantized = logprobs()
    assert not torch.equal(packed, dequantized)
    errors = [(found - exact).square().mean().sqrt() for found in (packed, dequantized)]
    assert errors[0] < 2 * errors[1]
