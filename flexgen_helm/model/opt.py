"""OPT, OPT-IML and Galactica: the arithmetic of each step on packed positions.

Shape letters: n packed positions (of all sequences of a micro-batch), e model width, v vocabulary.
Weights come as parts (see `offload.weights`); the tensors of a part are listed in `parts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flexgen_helm.model.kv_cache import KeysValues
from flexgen_helm.model.linear import linear
from flexgen_helm.offload.weights import Part
from flexgen_helm.specs.chunks import HEAD_COLUMNS
from flexgen_helm.specs.model import POSITION_OFFSET, ModelSpec

Attention = Callable[[Tensor, KeysValues], Tensor]
"""Queries [n, e] and new keys and values [n, e] -> attended values, of the rows that come out."""


class _Projections(NamedTuple):
    queries: Tensor
    new: KeysValues


def embed(spec: ModelSpec, weights: Part, token_ids: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [n, e] before the first layer, of token ids [n] at positions [n]."""
    tokens = F.embedding(token_ids, weights["tokens"])
    if spec.projected_embeddings:
        tokens = F.linear(tokens, weights["project_in"])
    return tokens + F.embedding(positions + POSITION_OFFSET, weights["positions"])


def layer(
    spec: ModelSpec,
    weights: Part,
    hidden: Tensor,
    attention: Attention,
    rows: Tensor | None = None,
) -> Tensor:
    """One transformer layer, [n, e] -> [n, e]; `attention` decides who sees whom.

    With `rows` only these come out, also of `attention`; of the others the last layer needs keys
    and values alone.
    """
    return _mlp_block(spec, weights, _attention_block(spec, weights, hidden, attention, rows))


def logits(spec: ModelSpec, weights: Part, hidden: Tensor) -> Tensor:
    """Next-token logits [n, v] in float32, from the hidden states [n, e] of the last layer."""
    if spec.final_norm:
        hidden = _norm(weights, "final_norm", hidden)
    if spec.projected_embeddings:
        hidden = F.linear(hidden, weights["project_out"])
    head = weights["tokens" if spec.tied_embeddings else "lm_head"]
    values = hidden.new_empty(len(hidden), spec.vocab_size, dtype=torch.float32)
    # A part of the vocabulary at a time, as oneDNN makes a copy of what it multiplies with.
    for columns, part in zip(values.split(HEAD_COLUMNS, 1), head.split(HEAD_COLUMNS), strict=True):
        columns.copy_(linear(hidden, part))
    return values


def _attention_block(
    spec: ModelSpec, weights: Part, hidden: Tensor, attention: Attention, rows: Tensor | None
) -> Tensor:
    source = _norm(weights, "attention_norm", hidden) if spec.norm_before else hidden
    attended = attention(*_project(spec, weights, source))
    if rows is not None:
        hidden = hidden[rows]
    hidden = hidden + _linear(weights, "out_proj", attended)
    return hidden if spec.norm_before else _norm(weights, "attention_norm", hidden)


def _mlp_block(spec: ModelSpec, weights: Part, hidden: Tensor) -> Tensor:
    source = _norm(weights, "mlp_norm", hidden) if spec.norm_before else hidden
    hidden = hidden + _linear(
        weights, "fc2", _linear(weights, "fc1", source, activation=spec.activation)
    )
    return hidden if spec.norm_before else _norm(weights, "mlp_norm", hidden)


def _project(spec: ModelSpec, weights: Part, source: Tensor) -> _Projections:
    queries, keys, values = _linear(weights, "qkv_proj", source).chunk(3, dim=1)
    return _Projections(queries * spec.head_size**-0.5, KeysValues(keys, values))


def _linear(weights: Part, name: str, rows: Tensor, activation: str = "none") -> Tensor:
    return linear(rows, weights[name], weights.get(f"{name}.bias"), activation)


def _norm(weights: Part, name: str, rows: Tensor) -> Tensor:
    return F.layer_norm(rows, rows.shape[-1:], weights.get(name), weights.get(f"{name}.bias"))
