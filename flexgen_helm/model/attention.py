"""Exact attention in parts: over the keys a sequence shares with others, and over its own.

Each part comes with the log-sum-exp of its scores, which is all it takes to merge parts into what
one softmax over all keys gives (Hydragen, arXiv 2402.05099; FlashAttention's online softmax).

Shape letters: b sequences, s query positions, t cached positions, h heads, d head size, n packed
positions. Queries come scaled by 1/sqrt(d).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_SCORES = 6 << 20
"""Scores computed at once; with their softmax they take twice 12 MB in bfloat16."""

MIN_CHUNK_ROWS = 64
"""Queries from which a product is worth its call."""

SAMPLED_KEYS = 16
"""Keys among which one with weight is looked for."""


class Attended(NamedTuple):
    """Values attended to, and how much there was to attend to."""

    values: Tensor
    """[..., d]"""

    lse: Tensor
    """Log-sum-exp of the scores [...], float32."""

    def rows(self, rows: slice | Tensor) -> Attended:
        """Part along the first dimension; sharing memory if it is a slice."""
        return Attended(self.values[rows], self.lse[rows])


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False) -> Attended:
    """Attention of every query to every key or, if causal, to those at or before its position.

    Args:
        queries: [h, s, d]; heads of several sequences count as heads.
        keys: [h, t, d]; t is s if causal.
        values: [h, t, d].
        causal: whether a query sees no later key.

    Returns:
        values [h, s, d] and log-sum-exp [h, s].
    """
    if queries.device.type == "cpu":
        # In bfloat16 plain products are up to twice as fast as the fused kernel, in float32 not.
        kernel = _by_products if queries.dtype == torch.bfloat16 else _fused_on_cpu
    else:
        kernel = _fused_on_cuda
    return kernel(queries, keys, values, causal)


def attend_rows(queries: Tensor, keys: Tensor, values: Tensor) -> Attended:
    """Attention of packed rows to keys they all see, [n, h, d] and twice [h, t, d] -> [n, h, d]."""
    part = attend(queries.transpose(0, 1), keys, values)
    return Attended(part.values.transpose(0, 1), part.lse.t())


def _fused_on_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Attended:
    attended, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[None], k[None], v[None], is_causal=causal, scale=1.0
    )
    return Attended(attended[0], lse[0])


def _fused_on_cuda(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Attended:
    attended, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q[None], k[None], v[None], None, compute_log_sumexp=True, is_causal=causal, scale=1.0
    )
    return Attended(attended[0], lse[0, :, : q.shape[1]])  # padded to a multiple of 32


def _by_products(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Attended:
    """Attention as product, softmax and product, in chunks whose scores stay in the CPU's cache."""
    h, s, _ = q.shape
    k, v = k.contiguous(), v.contiguous()  # batched products are several times slower otherwise
    step = max(MIN_CHUNK_ROWS, CHUNK_SCORES // (h * k.shape[1]))
    values = q.new_empty(q.shape)
    lse = q.new_empty(h, s, dtype=torch.float32)
    for start in range(0, s, step):
        stop = min(start + step, s)
        seen = slice(0, stop if causal else None)
        scores = torch.bmm(q[:, start:stop], k[:, seen].transpose(1, 2))
        if causal:
            scores += _future(start, stop, scores)
        weights = scores.softmax(-1)
        values[:, start:stop] = torch.bmm(weights, v[:, seen])
        if causal:  # a query sees at least itself
            score, weight = (x.diagonal(start, -2, -1) for x in (scores, weights))
        else:
            score, weight = _heaviest(scores, weights[..., :SAMPLED_KEYS])
        lse[:, start:stop] = _lse(scores, weights, (score, weight))
    return Attended(values, lse)


def _future(start: int, stop: int, like: Tensor) -> Tensor:
    """Minus infinity where a query at `start` to `stop` must not look [s, t]."""
    mask = torch.full((stop - start, stop), -torch.inf, dtype=like.dtype, device=like.device)
    return mask.triu_(start + 1)


def _lse(scores: Tensor, weights: Tensor, likely: tuple[Tensor, Tensor]) -> Tensor:
    """Log-sum-exp of each row of scores [..., t], whose softmax is known.

    Any key with some weight will do, as its weight is exp(score - lse): that saves reading all
    scores again.

    Args:
        scores: [..., t].
        weights: their softmax.
        likely: score and weight of a key that is likely to have some, both [...].
    """
    score, weight = likely if likely[1].all() else _heaviest(scores, weights)
    return score.float() - weight.float().log()


def _heaviest(scores: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Score and weight of the heaviest key of each row."""
    weight, index = weights.max(-1)
    return scores.gather(-1, index[..., None])[..., 0], weight


def attend_one(
    queries: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
    mask: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
) -> Attended:
    """Attention of one new position per sequence to its cached past and to itself.

    Two batched products: for a single query they are several times faster than fused kernels, which
    are made for many. The new position's keys and values take part as computed, not as a compressed
    cache will store them.

    Args:
        queries: [b, h, d].
        past_keys: [b, h, t, d].
        past_values: [b, h, t, d]; finite also where masked.
        mask: where there is no past [b, t].
        own_keys: of the new positions [b, h, d].
        own_values: of the new positions [b, h, d].

    Returns:
        values [b, h, d] and log-sum-exp [b, h].
    """
    b, h, t, _ = past_keys.shape
    past_scores = torch.bmm(
        queries.reshape(b * h, 1, -1), past_keys.flatten(0, 1).transpose(1, 2)
    ).view(b, h, t)
    past_scores = past_scores.float().masked_fill_(mask[:, None], -torch.inf)
    own_scores = (queries * own_keys).sum(-1, keepdim=True, dtype=torch.float32)  # [b, h, 1]
    scores = torch.cat([past_scores, own_scores], dim=-1)
    weights = scores.softmax(-1)
    lse = _lse(scores, weights, (scores[..., -1], weights[..., -1]))
    weights = weights.to(queries.dtype)
    past = torch.bmm(weights[..., :t].reshape(b * h, 1, t), past_values.flatten(0, 1)).view_as(
        queries
    )
    return Attended(torch.addcmul(past, weights[..., t:], own_values), lse)


def merge_(total: Attended, part: Attended) -> None:
    """Add to `total`, in place, what the same queries attended to elsewhere."""
    share = torch.sigmoid(part.lse - total.lse)
    total.values.lerp_(part.values, share[..., None].to(total.values.dtype))
    torch.logaddexp(total.lse, part.lse, out=total.lse)
