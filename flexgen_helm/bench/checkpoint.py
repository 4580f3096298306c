"""Checkpoints of random weights: what a benchmark computes with where no model can be downloaded.

Time does not depend on what the weights are, as long as completions run to their full length.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import OPTForCausalLM

SEED = 0


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of an OPT decoder; fields are named as in ``config.json``."""

    name: str
    """What the benchmark's flags and reports call it."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int

    init_std: float
    """Standard deviation of weights. Large enough for attention to single out positions, so that
    completions depend on their prompts; small enough for rounding errors to stay small."""

    vocab_size: int = 50272
    """As OPT's own: more rows than its tokenizer has ids."""

    max_position_embeddings: int = 2048
    """Longest sequence, in tokens."""


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape(
            name="opt-125m",
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            ffn_dim=3072,
            init_std=0.04,
        ),
        ModelShape(
            name="opt-1.3b",
            hidden_size=2048,
            num_hidden_layers=24,
            num_attention_heads=32,
            ffn_dim=8192,
            init_std=0.02,
        ),
        ModelShape(
            name="tiny",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=64,
            init_std=0.2,
        ),
    )
}
"""`tiny` is for trying a command out: its figures say nothing about models."""


def random_checkpoint(
    shape: ModelShape, *, tokenizer: Path, parent: Path, dtype: str = "float16"
) -> Path:
    """Return the directory of such a checkpoint in `parent`, written unless it is there.

    Args:
        shape: sizes of the model.
        tokenizer: directory of OPT's tokenizer files, which are copied.
        parent: where checkpoints are kept.
        dtype: of the weights; OPT was published in float16.
    """
    directory = parent / f"random-{shape.name}-std{shape.init_std}-seed{SEED}-{dtype}"
    if not directory.is_dir():
        temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
        try:
            _write(shape, tokenizer=tokenizer, directory=temporary, dtype=dtype)
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _write(shape: ModelShape, *, tokenizer: Path, directory: Path, dtype: str) -> None:
    directory.mkdir(parents=True)
    for file in tokenizer.iterdir():
        shutil.copyfile(file, directory / file.name)
    _random_model(shape, dtype).save_pretrained(directory)


def _random_model(shape: ModelShape, dtype: str) -> OPTForCausalLM:
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        word_embed_proj_dim=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        ffn_dim=shape.ffn_dim,
        max_position_embeddings=shape.max_position_embeddings,
        init_std=shape.init_std,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        model = OPTForCausalLM(config)
    with torch.no_grad():
        # With a zero embedding the end token's logit is 0, so that completions rarely end early.
        model.get_output_embeddings().weight[config.eos_token_id] = 0
    return model.to(getattr(torch, dtype))
