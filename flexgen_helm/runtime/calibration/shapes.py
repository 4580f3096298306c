"""What is measured with: mostly shapes of OPT-1.3B's width."""

from __future__ import annotations

from typing import Any

from flexgen_helm.specs.opt_sizes import config_of

WIDTH, FFN, HEADS = 2048, 8192, 32
HEAD = WIDTH // HEADS

VOCABULARY, NUM_LAYERS = 1024, 4
"""Of the small model."""

SEQUENCES, CACHED = 64, 512
"""In decode, and tokens of each; a prompt has as many."""

GPU_ROWS = 8192
"""Rows with which a GPU is busy for longer than it takes to tell it what to do."""


def small_config() -> dict[str, Any]:
    """Return the shape of a model of few layers of the width that is measured."""
    return {
        **config_of("1.3b"),
        "num_hidden_layers": NUM_LAYERS,
        "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "ffn_dim": FFN,
        "num_attention_heads": HEADS,
        "vocab_size": VOCABULARY,
    }
