"""Engines that compute with Triton's kernels, in its interpreter where there is no GPU."""

import pytest
import torch

from flexgen_helm import Engine, GenerationRequest, Policy, SamplingParams
from flexgen_helm.quant import kernels
from flexgen_helm.specs.placement import Placement
from tests.conftest import byte_tokenizer, save_random_checkpoint

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA")

KERNELS = ("dequantize_into", "quantize", "quantize_into", "multiply", "attend")


@pytest.fixture(scope="module")
def wide_heads(tmp_path_factory):
    """A checkpoint whose heads are as wide as a group of codes."""
    directory = tmp_path_factory.mktemp("wide-heads")
    changes = {"num_attention_heads": 2, "num_hidden_layers": 2}
    save_random_checkpoint(directory, byte_tokenizer(), **changes)
    return directory


@pytest.fixture
def used(monkeypatch):
    """Have the engine take kernels for made for this machine; counts their calls."""
    calls = dict.fromkeys(KERNELS, 0)

    def counted(name):
        kernel = getattr(kernels, name)

        def count(*args):
            calls[name] += 1
            return kernel(*args)

        return count

    for name in KERNELS:
        monkeypatch.setattr(kernels, name, counted(name))
    if not torch.cuda.is_available():
        monkeypatch.setattr(kernels, "run_on", lambda _: True)
    return calls


def generate(checkpoint, policy, offload_dir):
    shared = [2, *range(10, 40)]
    requests = [
        GenerationRequest(
            prompt_token_ids=[*shared, *range(50 + index, 53 + 4 * index)],
            sampling=SamplingParams(max_tokens=5, num_completions=1 + index % 2, temperature=0.0),
        )
        for index in range(4)
    ]
    with Engine.from_pretrained(
        checkpoint,
        compression="w4-kv4-g32",
        dtype="float32",
        policy=policy,
        offload_dir=offload_dir,
    ) as engine:
        results = engine.generate(requests)
    return [c.token_ids for r in results for c in r.completions], [
        c.logprobs for r in results for c in r.completions
    ]


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(cache=Placement(host=0.5, disk=0.5), weights=Placement(disk=1), micro_batch_size=3),
    ],
    ids=["on the device", "elsewhere"],
)
def test_kernels_compute_what_pytorch_does(wide_heads, policy, tmp_path, monkeypatch, request):
    expected, logprobs = generate(wide_heads, policy, tmp_path)
    used = request.getfixturevalue("used")
    actual, others = generate(wide_heads, policy, tmp_path)
    assert actual == expected
    for ours, theirs in zip(others, logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    if torch.cuda.is_available() and policy.cache.device == 0:
        del used["quantize_into"]  # what is elsewhere is quantized first, and copied then
    assert all(used.values()), used


def test_more_rows_are_multiplied_with_dequantized_weights(wide_heads, used, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "FEW_ROWS", 2)
    generate(wide_heads, Policy(), tmp_path)
    assert used["dequantize_into"] > 0
    assert used["multiply"] == 0


def test_tensors_elsewhere_are_for_pytorch():
    assert not kernels.run_on(torch.device("cpu"))
    assert not kernels.exist_for(4, 64, 128, torch.device("cpu"))
