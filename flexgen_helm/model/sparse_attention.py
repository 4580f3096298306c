"""Attention of new positions to a part of the past: the values of largest weight in each head.

As in FlexGen (arXiv 2303.06865, section 5): all keys are read and the softmax is over all of them,
but values whose weight is not among the largest are left out, and nothing makes up for them. Which
weights are the largest is decided over all a sequence sees, so that it makes no difference what of
it is shared with others.

Shape letters: n rows, one new position of a sequence each, b sequences of a pool, t cached
positions, h heads, d head size, k positions attended to. Queries come scaled by 1/sqrt(d).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flexgen_helm.model.attention import Attended
from flexgen_helm.specs.chunks import CHUNK_SCORES


class TopPositions(NamedTuple):
    """The past positions of largest score, of each sequence of a pool and head."""

    scores: Tensor
    """[b, h, k], float32; minus infinity where there is no past."""

    positions: Tensor
    """[b, h, k]"""

    lse: Tensor
    """Log-sum-exp of the scores with the whole past [b, h]."""


def find_top(queries: Tensor, keys: Tensor, mask: Tensor, most: int) -> TopPositions:
    """Find what new positions may attend to in their cached past.

    Args:
        queries: [b, h, d].
        keys: [b, h, t, d].
        mask: where there is no past [b, t].
        most: positions to find, as far as there are so many.
    """
    b, h, t, _ = keys.shape
    scores = torch.bmm(queries.reshape(b * h, 1, -1), keys.flatten(0, 1).transpose(1, 2))
    scores = scores.view(b, h, t).float().masked_fill_(mask[:, None], -torch.inf)
    return TopPositions(*scores.topk(min(most, t)), scores.logsumexp(-1))


class LargestScores:
    """The largest scores of each row, over parts of its past that come one after another.

    Args:
        counts: how many are wanted of each row [n]; one at least, and no more than there are.
        most: how many are wanted of any row.
        num_heads: h.
    """

    def __init__(self, counts: Tensor, most: int, num_heads: int) -> None:
        self._counts = counts
        self._most = most
        shape = len(counts), num_heads, most
        self._largest = torch.full(shape, -torch.inf, device=counts.device)

    def add(self, rows: slice | Tensor, scores: Tensor) -> None:
        """Take the scores of some rows with a part of their past [rows, h, t]."""
        both = torch.cat([self._largest[rows], scores.to(self._largest.device)], dim=-1)
        self._largest[rows] = both.topk(self._most).values

    def add_shared(self, rows: slice | Tensor, queries: Tensor, keys: Tensor) -> None:
        """Take the scores of some rows with positions they share.

        Args:
            rows: which.
            queries: of these rows [r, h, d].
            keys: [h, t, d].
        """
        numbers = torch.arange(len(self._counts), device=self._counts.device)[rows]
        for chunk in _chunks(queries, keys):
            self.add(numbers[chunk], _shared_scores(queries[chunk], keys).transpose(0, 1))

    def thresholds(self) -> Tensor:
        """Return the least score of each row and head that is attended to [n, h]."""
        num_heads = self._largest.shape[1]
        last = (self._counts - 1)[:, None, None].expand(-1, num_heads, 1)
        return self._largest.gather(-1, last)[..., 0]


def attend_top(
    queries: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    top: TopPositions,
    top_values: Tensor,
    thresholds: Tensor,
) -> Attended:
    """Attention of one new position per sequence to itself and to the top of its cached past.

    Args:
        queries: [b, h, d].
        own_keys: of the new positions [b, h, d].
        own_values: of the new positions [b, h, d].
        top: what may be attended to.
        top_values: the values there [b, h, k, d].
        thresholds: least score that is attended to [b, h].

    Returns:
        values [b, h, d] and log-sum-exp of all scores [b, h].
    """
    own_scores = (queries * own_keys).sum(-1, dtype=torch.float32)
    lse = torch.logaddexp(top.lse, own_scores)
    weights = (top.scores - lse[..., None]).exp_()
    weights.masked_fill_(top.scores < thresholds[..., None], 0)
    past = torch.matmul(weights[:, :, None].to(top_values.dtype), top_values)[:, :, 0]
    own = (own_scores - lse).exp_()[..., None].to(past.dtype)
    return Attended(torch.addcmul(past, own, own_values), lse)


def attend_shared_top(
    queries: Tensor, keys: Tensor, values: Tensor, thresholds: Tensor
) -> Attended:
    """Attention of new positions to the top of positions they share.

    Args:
        queries: [r, h, d].
        keys: [h, t, d].
        values: [h, t, d].
        thresholds: least score that is attended to [r, h].

    Returns:
        values [r, h, d] and log-sum-exp of all scores [r, h].
    """
    attended = torch.empty_like(queries)
    lse = queries.new_empty(queries.shape[:2], dtype=torch.float32)
    for chunk in _chunks(queries, keys):
        scores = _shared_scores(queries[chunk], keys)
        total = scores.logsumexp(-1, keepdim=True)
        left_out = scores < thresholds[chunk].t()[..., None]
        weights = scores.sub_(total).exp_().masked_fill_(left_out, 0)
        attended[chunk] = torch.bmm(weights.to(values.dtype), values).transpose(0, 1)
        lse[chunk] = total[..., 0].t()
    return Attended(attended, lse)


def _shared_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Scores of rows [r, h, d] with positions [h, t, d], float32 [h, r, t]."""
    return torch.bmm(queries.transpose(0, 1), keys.transpose(1, 2)).float()


def _chunks(queries: Tensor, keys: Tensor) -> Iterator[slice]:
    """Rows whose scores are computed at once."""
    h, t, _ = keys.shape
    step = max(1, CHUNK_SCORES // (h * t))
    for start in range(0, len(queries), step):
        yield slice(start, start + step)
