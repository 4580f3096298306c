"""Random checkpoints of every architecture variant, and the tokenizers they come with."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():  # before anything imports Triton, which chooses then
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from tests.simulated_card.card import Card
from tests.simulated_card.cuda import installed

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

os.environ["FLEXGEN_HELM_HARDWARE"] = os.devnull + "/none"
"""Tests are not to depend on whether this machine has been calibrated."""

NEEDS_GPU = "needs a CUDA GPU"
HAS_GPU = torch.cuda.is_available()
GPU = pytest.param("gpu", marks=pytest.mark.skipif(not HAS_GPU, reason=NEEDS_GPU), id="gpu")
SIMULATED = pytest.param(
    "simulated", marks=pytest.mark.skipif(HAS_GPU, reason="a real GPU is here"), id="simulated"
)

VARIANTS = {
    "opt": {},
    "post_norm_projected": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "galactica": {"activation_function": "gelu", "enable_bias": False},
    "no_affine_untied": {
        "layer_norm_elementwise_affine": False,
        "tie_word_embeddings": False,
        "_remove_final_layer_norm": True,
    },
}
"""OPT, OPT-350m, Galactica, and the switches no known checkpoint combines."""


def byte_tokenizer():
    """A tokenizer of special tokens and the 256 bytes, with OPT's ids for the special ones."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def save_random_checkpoint(directory, tokenizer, *, seed=0, **changes):
    """Write an OPT with random weights, spread wide enough for clear argmaxes."""
    config = OPTConfig(
        **{
            "vocab_size": len(tokenizer) + 7,  # as OPT's own: more rows than the tokenizer has ids
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 256,
            "init_std": 0.25,
            **changes,
        }
    )
    torch.manual_seed(seed)
    model = OPTForCausalLM(config).eval()
    with torch.no_grad():
        # With a zero embedding the end token's logit is 0, so that completions rarely end at once.
        model.get_output_embeddings().weight[config.eos_token_id] = 0
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # biases and norms start at 0 and 1, which would hide mistakes
                offset = 1.0 if name.endswith("norm.weight") else 0.0
                parameter.copy_(offset + 0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


@pytest.fixture(scope="session")
def opt_tokenizer():
    """OPT's real tokenizer, from the data that stands beside the checkout on some machines."""
    path = SHARED_DATA / "opt-tokenizer"
    if not path.is_dir():
        pytest.skip("the real OPT tokenizer is not here")
    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Directory of a random pre-layer-norm OPT with a byte tokenizer."""
    directory = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(directory, byte_tokenizer())
    return directory


@pytest.fixture(params=[SIMULATED, GPU])
def cuda(request, monkeypatch):
    """A CUDA device: one that the processor simulates and checks, which is returned, or a real one.

    What a simulated one finds wrong fails the test.
    """
    if request.param == "gpu":
        yield None
        return
    card = Card()
    with installed(card, monkeypatch):
        yield card
    assert not card.findings, "\n".join(card.findings)


def pytest_terminal_summary(terminalreporter):
    """Say how many completions were compared with a reference, and how many parted at a tie.

    And, by name, what was not tested for want of a GPU.
    """
    skipped = [
        r.nodeid for r in terminalreporter.getreports("skipped") if NEEDS_GPU in str(r.longrepr)
    ]
    for name in dict.fromkeys(node.partition("[")[0] for node in skipped):
        terminalreporter.write_line(f"not run, {NEEDS_GPU}: {name}")
    passed = [r for r in terminalreporter.getreports("passed") if r.when == "call"]
    agreements = [dict(r.user_properties)["agreement"] for r in passed if r.user_properties]
    if agreements:
        compared, ties = (sum(numbers) for numbers in zip(*agreements, strict=True))
        terminalreporter.write_line(f"compared with the reference: {compared}, ties: {ties}")
