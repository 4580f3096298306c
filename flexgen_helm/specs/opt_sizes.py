"""The shapes of the OPT family, for models that are not at hand."""

from __future__ import annotations

import re
from typing import Any

from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.model import ModelSpec

SIZES = {
    "125m": (12, 768, 12),
    "1.3b": (24, 2048, 32),
    "2.7b": (32, 2560, 32),
    "6.7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "66b": (64, 9216, 72),
    "175b": (96, 12288, 96),
}
"""Layers, width and heads (Zhang et al. 2022, table 1); the MLP is four times as wide. OPT-350m,
whose layers are different, is not among them."""

_NAME = re.compile(r"(?:facebook/|flexgen/)?opt-(?:iml-(?:max-)?)?(?P<size>\d+(?:\.\d+)?[mb])")


def config_of(size: str) -> dict[str, Any]:
    """Return what the `config.json` of a size says."""
    layers, width, heads = SIZES[size]
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "eos_token_id": 2,
        "bos_token_id": 2,
        "pad_token_id": 1,
    }


def known_spec(model: str) -> ModelSpec | None:
    """Return the shape of a model named as on the hub: `facebook/opt-30b`, `opt-iml-30b`, ...

    `None` for any other name.
    """
    size = _size_in(model)
    return None if size is None else ModelSpec.from_config(config_of(size))


def size_of(model: str) -> str:
    """Return the size in a model's name.

    Raises:
        InvalidSettingError: it has none that is known.
    """
    size = _size_in(model)
    if size is None:
        raise InvalidSettingError(
            f"the shape of model {model!r} is not known: name facebook/opt-SIZE with one of the"
            f" sizes {', '.join(SIZES)}"
        )
    return size


def _size_in(model: str) -> str | None:
    match = _NAME.fullmatch(model)
    return match["size"] if match is not None and match["size"] in SIZES else None
