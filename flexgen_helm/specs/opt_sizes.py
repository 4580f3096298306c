"""The shapes of OPT and its relatives, for models that are not at hand."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.model import ModelSpec

SIZES = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "1.3b": (24, 2048, 32),
    "2.7b": (32, 2560, 32),
    "6.7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "66b": (64, 9216, 72),
    "175b": (96, 12288, 96),
}
"""Layers, width and heads of OPT and OPT-IML (Zhang et al. 2022, table 1); the MLP is four times as
wide."""

GALACTICA_SIZES = {
    "125m": (12, 768, 12),
    "1.3b": (24, 2048, 32),
    "6.7b": (32, 4096, 32),
    "30b": (48, 7168, 56),
    "120b": (96, 10240, 80),
}
"""Those of Galactica (Taylor et al. 2022), likewise."""

_OPT_350M = {"word_embed_proj_dim": 512, "do_layer_norm_before": False}
_GALACTICA = {"vocab_size": 50000, "activation_function": "gelu", "enable_bias": False}
"""What the `config.json` of these says otherwise."""

_OPT_NAME = re.compile(r"(?:facebook/|flexgen/)?opt-(?:iml-(?:max-)?)?(?P<size>[\d.]+[mb])")
_GALACTICA_NAME = re.compile(r"(?:facebook/|flexgen/)?galactica-(?P<size>[\d.]+[mb])")


def config_of(size: str) -> dict[str, Any]:
    """Return what the `config.json` of an OPT says."""
    return _config(*SIZES[size]) | (_OPT_350M if size == "350m" else {})


def _config(layers: int, width: int, heads: int) -> dict[str, Any]:
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
    """Return the shape of a model named as on the hub: `facebook/opt-30b`, `galactica-6.7b`, ...

    `None` for any other name.
    """
    if (size := _size_in(model, _OPT_NAME, SIZES)) is not None:
        return ModelSpec.from_config(config_of(size))
    if (size := _size_in(model, _GALACTICA_NAME, GALACTICA_SIZES)) is not None:
        return ModelSpec.from_config(_config(*GALACTICA_SIZES[size]) | _GALACTICA)
    return None


def size_of(model: str) -> str:
    """Return the size in an OPT's name.

    Raises:
        InvalidSettingError: it has none that is known.
    """
    size = _size_in(model, _OPT_NAME, SIZES)
    if size is None:
        raise InvalidSettingError(
            f"the shape of model {model!r} is not known: name facebook/opt-SIZE with one of the"
            f" sizes {', '.join(SIZES)}"
        )
    return size


def _size_in(model: str, name: re.Pattern[str], sizes: Container[str]) -> str | None:
    match = name.fullmatch(model)
    return match["size"] if match is not None and match["size"] in sizes else None
