"""Exact attention in parts: over the keys a sequence shares with others, and over its own.

Each part comes with the log-sum-exp of its scores, which is all it takes to merge parts into what
one softmax over all keys gives (Hydragen, arXiv 2402.05099; FlashAttention's online softmax).

Shape letters: b sequences, s query positions, t cached positions, h heads, d head size, n packed
positions. Queries come scaled by 1/sqrt(d).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flexgen_helm.specs.chunks import CHUNK_SCORES

MIN_CHUNK_ROWS = 64
"""Queries from which a product is worth its call."""

MAX_CAUSAL_ROWS = 192
"""Queries of a causal chunk at most: all of its queries are multiplied with all keys up to the
last one's, and those that come after a query in vain."""

MOST_HEADS = 65_535
"""Heads that the fused kernel for GPUs takes at once: as many blocks as CUDA lets a grid have."""

SAFE_TOTALS = (1e-20, 1e20)
"""Sums of exponentials between which no weight that counts has under- or overflown."""


class Attended(NamedTuple):
    """Values attended to, and how much there was to attend to."""

    values: Tensor
    """[..., d]"""

    lse: Tensor
    """Log-sum-exp of the scores [...], float32."""

    def rows(self, rows: slice | Tensor) -> Attended:
        """Part along the first dimension; sharing memory if it is a slice."""
        return Attended(self.values[rows], self.lse[rows])

    def to(self, device: torch.device) -> Attended:
        """Bring it to a device."""
        return Attended(self.values.to(device), self.lse.to(device))


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


def attend_rows(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False) -> Attended:
    """Attention of packed rows [n, h, d], as `attend` does it for those by head."""
    part = attend(queries.transpose(0, 1), keys, values, causal=causal)
    return Attended(part.values.transpose(0, 1), part.lse.t())


def _fused_on_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Attended:
    attended, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[None], k[None], v[None], is_causal=causal, scale=1.0
    )
    return Attended(attended[0], lse[0])


def _fused_on_cuda(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Attended:
    queries, keys, values = (x.split(MOST_HEADS) for x in (q, k, v))
    parts = [_some_on_cuda(*x, causal=causal) for x in zip(queries, keys, values, strict=True)]
    return parts[0] if len(parts) == 1 else Attended(*map(torch.cat, zip(*parts, strict=True)))


def _some_on_cuda(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Attended:
    attended, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q[None], k[None], v[None], None, compute_log_sumexp=True, is_causal=causal, scale=1.0
    )
    return Attended(attended[0], lse[0, :, : q.shape[1]])  # padded to a multiple of 32


def _by_products(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Attended:
    """Attention as two products, in chunks whose scores stay in the CPU's cache."""
    h, s, _ = q.shape
    k, v = k.contiguous(), v.contiguous()  # batched products are several times slower otherwise
    step = max(MIN_CHUNK_ROWS, CHUNK_SCORES // (h * k.shape[1]))
    if causal:
        step = min(step, MAX_CAUSAL_ROWS)
    values = q.new_empty(q.shape)
    lse = q.new_empty(h, s, dtype=torch.float32)
    for start in range(0, s, step):
        stop = min(start + step, s)
        seen = k.shape[1] if not causal else stop
        future = _future(start, stop, q) if causal else None
        weights = _weigh(functools.partial(_scores, q[:, start:stop], k[:, :seen], future))
        attended = torch.bmm(weights.past, v[:, :seen])
        torch.div(attended, weights.total, out=values[:, start:stop])
        lse[:, start:stop] = weights.lse()
    return Attended(values, lse)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2))
    return scores if mask is None else scores.add_(mask)


def _future(start: int, stop: int, like: Tensor) -> Tensor:
    """Minus infinity where a query at `start` to `stop` must not look [s, t]."""
    mask = torch.full((stop - start, stop), -torch.inf, dtype=like.dtype, device=like.device)
    return mask.triu_(start + 1)


class _Weights(NamedTuple):
    """Numerators and denominator of a softmax, all divided by exp(shift)."""

    past: Tensor
    """Exponentials of the scores [..., t]."""

    own: Tensor | None
    """Of the score of one more key [..., 1], float32."""

    total: Tensor
    """Sum of all [..., 1]."""

    shift: Tensor | None
    """Subtracted from the scores [..., 1]; nothing if `None`."""

    def lse(self) -> Tensor:
        """Log-sum-exp of the scores [...], float32."""
        lse = self.total.float().log()
        return (lse if self.shift is None else lse + self.shift)[..., 0]


def _weigh(scores: Callable[[], Tensor], own: Tensor | None = None) -> _Weights:
    """Exponentials of scores [..., t], and of one more [..., 1], and their sum.

    A softmax subtracts the largest score first, and so reads all scores three times. Scores are
    small enough to do without, as a rule; where they are not, they are computed once more.

    Args:
        scores: computes them, to be overwritten.
        own: score of one more key, float32.
    """
    first = scores()
    # Elsewhere a look at the result means waiting for it, and float16 cannot hold what is harmless
    # in other dtypes.
    if first.is_cpu and first.dtype != torch.float16:
        weights = _exponentials(first, own)
        least, most = weights.total.aminmax()
        if least > SAFE_TOTALS[0] and most < SAFE_TOTALS[1]:
            return weights
        first = scores()
    shift = first.amax(-1, keepdim=True)
    if own is None:
        return _exponentials(first.sub_(shift), None)._replace(shift=shift)
    shift = torch.maximum(shift, own.to(shift.dtype))
    return _exponentials(first.sub_(shift), own - shift)._replace(shift=shift)


def _exponentials(scores: Tensor, own: Tensor | None) -> _Weights:
    past = scores.exp_()
    total = past @ past.new_ones(past.shape[-1], 1)  # many times faster than a sum
    if own is None:
        return _Weights(past, None, total, None)
    own = own.exp()
    return _Weights(past, own, total + own, None)


def attend_some(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
) -> Attended:
    """Attention of a few of a sequence's positions, each to the keys it sees.

    Args:
        queries: [b, h, s, d].
        keys: [b, h, t, d].
        values: [b, h, t, d]; finite also where masked.
        mask: where a query must not look [b, s, t]; it sees one key at least. All if `None`.

    Returns:
        values [b, h, s, d] and log-sum-exp [b, h, s].
    """
    b, h, s, _ = queries.shape
    q, k, v = (x.flatten(0, 1) for x in (queries, keys, values))

    def scores() -> Tensor:
        found = _scores(q, k, None).view(b, h, s, -1)
        return found if mask is None else found.masked_fill_(mask[:, None], -torch.inf)

    weights = _weigh(scores)
    attended = torch.bmm(weights.past.flatten(0, 1), v).view_as(queries)
    return Attended(attended.div_(weights.total), weights.lse())


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
    q, k, v = queries.reshape(b * h, 1, -1), past_keys.flatten(0, 1), past_values.flatten(0, 1)

    def past_scores() -> Tensor:
        return _scores(q, k, None).view(b, h, t).masked_fill_(mask[:, None], -torch.inf)

    own_scores = (queries * own_keys).sum(-1, keepdim=True, dtype=torch.float32)
    weights = _weigh(past_scores, own_scores)
    assert weights.own is not None, "it was given"
    past = torch.bmm(weights.past.view(b * h, 1, t), v).view_as(queries)
    attended = torch.addcmul(past, weights.own.to(past.dtype), own_values)
    return Attended(attended.div_(weights.total), weights.lse())


def attend_self(queries: Tensor, keys: Tensor, values: Tensor) -> Attended:
    """Attention of positions to themselves alone, all [b, h, d]."""
    return Attended(values.clone(), (queries * keys).sum(-1, dtype=torch.float32))


def merge_(total: Attended, part: Attended) -> None:
    """Add to `total`, in place, what the same queries attended to elsewhere."""
    share = torch.sigmoid(part.lse - total.lse)
    total.values.lerp_(part.values, share[..., None].to(total.values.dtype))
    torch.logaddexp(total.lse, part.lse, out=total.lse)
