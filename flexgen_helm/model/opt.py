"""OPT, OPT-IML and Galactica: the arithmetic of each step on packed positions.

Shape letters: n packed positions (of all sequences of a micro-batch), e model width, v vocabulary.
Weights come as parts (see `offload.weights`); the tensors of a part are listed in `parts`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from flexgen_helm.model.kv_cache import KeysValues
from flexgen_helm.model.linear import EXPECTED_ROWS, linear
from flexgen_helm.offload.weights import Part
from flexgen_helm.specs.chunks import HEAD_COLUMNS, REUSED_BYTES
from flexgen_helm.specs.model import POSITION_OFFSET, ModelSpec

ADDED_ROWS = 128
"""Rows whose positions are added at once. What is looked up for them lies in the heap between the
hidden states of two micro-batches, where it leaves a hole: a small one."""


class Projections(NamedTuple):
    """What attention begins with."""

    queries: Tensor
    """[n, e]"""

    new: KeysValues


def embed(spec: ModelSpec, weights: Part, token_ids: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [n, e] before the first layer, of token ids [n] at positions [n]."""
    tokens = F.embedding(token_ids, _table(weights, "tokens"))
    if spec.projected_embeddings:
        tokens = F.linear(tokens, _table(weights, "project_in"))
    for rows, where in zip(tokens.split(ADDED_ROWS), positions.split(ADDED_ROWS), strict=True):
        rows.add_(F.embedding(where + POSITION_OFFSET, _table(weights, "positions")))
    return tokens


def project(spec: ModelSpec, weights: Part, hidden: Tensor) -> Projections:
    """First half of a transformer layer: what attention begins with, of hidden states [n, e]."""
    source = _norm(weights, "attention_norm", hidden) if spec.norm_before else hidden
    queries, keys, values = _linear(weights, "qkv_proj", source).chunk(3, dim=1)
    return Projections(queries.mul_(spec.head_size**-0.5), KeysValues(keys, values))


def finish(spec: ModelSpec, weights: Part, hidden: Tensor, attended: Tensor) -> Tensor:
    """Second half of a layer, of the rows that come out of it, all [n, e]; overwrites `hidden`."""
    at_once = max(1, _rows_at_once(hidden, spec.ffn_size))
    for rows, read in zip(hidden.split(at_once), attended.split(at_once), strict=True):
        rows.add_(_linear(weights, "out_proj", read))
        if not spec.norm_before:
            rows.copy_(_norm(weights, "attention_norm", rows))
        source = _norm(weights, "mlp_norm", rows) if spec.norm_before else rows
        inner = _linear(weights, "fc1", source, activation=spec.activation)
        rows.add_(_linear(weights, "fc2", inner))
        if not spec.norm_before:
            rows.copy_(_norm(weights, "mlp_norm", rows))
    return hidden


def _rows_at_once(hidden: Tensor, width: int) -> int:
    """Return how many rows go through the MLP at once, which makes [n, `width`] of them.

    A processor's pages for more than is used again cost a tenth of the MLP's time. So all of them,
    unless `EXPECTED_ROWS` stay below that: products of fewer would be slower.
    """
    row_bytes = width * hidden.element_size()
    narrow = hidden.device.type == "cpu" and EXPECTED_ROWS * row_bytes < REUSED_BYTES
    return EXPECTED_ROWS if narrow else len(hidden)


def logits(spec: ModelSpec, weights: Part, hidden: Tensor, out: Tensor) -> Tensor:
    """Put next-token logits into `out` [n, v], from the hidden states [n, e] of the last layer."""
    if spec.final_norm:
        hidden = _norm(weights, "final_norm", hidden)
    if spec.projected_embeddings:
        hidden = F.linear(hidden, _table(weights, "project_out"))
    head = _table(weights, "tokens" if spec.tied_embeddings else "lm_head")
    # A part of the vocabulary at a time, as oneDNN makes a copy of what it multiplies with.
    for columns, part in zip(out.split(HEAD_COLUMNS, 1), head.split(HEAD_COLUMNS), strict=True):
        columns.copy_(linear(hidden, part))
    return out


def _linear(weights: Part, name: str, rows: Tensor, activation: str = "none") -> Tensor:
    return linear(rows, weights[name], _vector(weights, f"{name}.bias"), activation)


def _norm(weights: Part, name: str, rows: Tensor) -> Tensor:
    scale, bias = _vector(weights, name), _vector(weights, f"{name}.bias")
    return F.layer_norm(rows, rows.shape[-1:], scale, bias)


def _table(weights: Part, name: str) -> Tensor:
    table = weights[name]
    assert isinstance(table, Tensor), f"{name} is never quantized"
    return table


def _vector(weights: Part, name: str) -> Tensor | None:
    return _table(weights, name) if name in weights else None
