"""From logits to tokens, each row by its own parameters and its own random numbers.

A draw uses one uniform number that depends only on the request, the completion's index and the
step: never on other rows, so the same request gets the same completion in any batch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flexgen_helm.model.row_cells import row_index
from flexgen_helm.specs.request import GenerationRequest, SamplingParams

_DRAWN_AT_ONCE = 16
"""Rows whose probabilities are computed at once, which stay in a processor's cache."""

_STRETCH = 256
"""Tokens whose probabilities are added up before a token is looked for among them."""

_LEAST_TEMPERATURE = 1e-30
"""Below it the most probable token is drawn in any case, and float32 cannot hold the quotients."""


class Draw(NamedTuple):
    """A token and the natural log of the model's probability for it."""

    token_id: int
    logprob: float


class SequenceRandom:
    """Counter-based uniform numbers of one completion: number `step` is a function of its key."""

    def __init__(self, request: GenerationRequest, completion_index: int) -> None:
        prompt = np.asarray(request.prompt_token_ids, dtype=np.int64).tobytes()
        text = f"{request.sampling.seed}/{completion_index}/".encode()
        digest = hashlib.blake2b(text + prompt, digest_size=16).digest()
        self._key = np.frombuffer(digest, dtype=np.uint64)

    def uniform(self, step: int) -> float:
        """Return number `step`, in [0, 1)."""
        # A Philox counter step yields four words, of which a double takes one: skip whole blocks.
        bits = np.random.Philox(key=self._key, counter=[step, 0, 0, 0])
        return float(np.random.Generator(bits).random())


class Row(NamedTuple):
    """What a row of logits is sampled with."""

    sampling: SamplingParams
    random: SequenceRandom
    generated: Sequence[int]
    """Tokens generated so far; their number is the step."""


def sample(logits: Tensor, rows: Sequence[Row], out: Tensor | None = None) -> list[Draw]:
    """Draw the next token of each row of logits [b, v] (float32).

    Args:
        logits: of the model.
        rows: what to draw with.
        out: memory for log-probabilities [b, v].
    """
    adjusted = _penalize(logits, rows)
    token_ids = [0] * len(rows)
    drawn = [index for index, row in enumerate(rows) if not row.sampling.greedy]
    if len(drawn) < len(rows):
        token_ids = adjusted.max(dim=-1).indices.tolist()  # `argmax` takes twice as long
    for start in range(0, len(drawn), _DRAWN_AT_ONCE):
        chunk = drawn[start : start + _DRAWN_AT_ONCE]
        chosen = _draw(adjusted[row_index(chunk, logits.device)], [rows[i] for i in chunk])
        for index, token_id in zip(chunk, chosen, strict=True):
            token_ids[index] = token_id
    logprobs = token_logprobs(logits, token_ids, out)
    return [Draw(*draw) for draw in zip(token_ids, logprobs, strict=True)]


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], out: Tensor | None = None
) -> list[float]:
    """Natural log of the probability of one token per row of logits [n, v].

    Args:
        logits: of the model.
        token_ids: the tokens.
        out: memory for log-probabilities [n, v].
    """
    # One pass more than logsumexp needs to write, but it is one fused operation instead of four.
    logprobs = torch.log_softmax(logits, dim=-1, out=out)
    chosen = torch.tensor(token_ids, dtype=torch.long, device=logits.device)[:, None]
    values: list[float] = logprobs.gather(1, chosen)[:, 0].tolist()
    return values


def _draw(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """Draw a token of each row of adjusted logits [n, v], as temperature and `top_p` say."""
    temperatures = logits.new_tensor(
        [max(row.sampling.temperature, _LEAST_TEMPERATURE) for row in rows]
    )
    weights = (logits / temperatures[:, None]).softmax(dim=1)
    for row, row_weights in zip(rows, weights, strict=True):
        if row.sampling.top_p < 1:
            _keep_nucleus_(row_weights, row.sampling.top_p)
    uniforms = [row.random.uniform(len(row.generated)) for row in rows]
    picked: list[int] = _pick(weights, weights.new_tensor(uniforms, dtype=torch.float64)).tolist()
    return picked


def _keep_nucleus_(weights: Tensor, top_p: float) -> None:
    """Make all weights [v] 0 but the smallest set of the largest that has `top_p` of their sum."""
    total = float(weights.sum(dtype=torch.float64))
    # Those below this have, together, less than is left out: only the others need to be sorted.
    least = total * (1 - top_p) / len(weights)
    candidates = (weights >= least).nonzero()[:, 0]
    ordered, order = weights[candidates].sort(descending=True, stable=True)
    before = ordered.cumsum(0, dtype=torch.float64) - ordered
    num_kept = max(1, int((before < top_p * total).sum()))
    weights.zero_()
    weights[candidates[order[:num_kept]]] = ordered[:num_kept]


def _pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Return where a part of the sum of each row is reached: an index of weights [n, v] each [n].

    First a stretch of the row is found, then the index in it: to add up stretches takes a tenth of
    the time of all sums up to each index.

    Args:
        weights: not negative.
        uniforms: parts [n], float64, from 0 on and below 1.
    """
    width = weights.shape[1]
    middle = width - width % _STRETCH
    stretches = weights[:, :middle].unflatten(1, (middle // _STRETCH, _STRETCH)).sum(2)
    rest = weights[:, middle:].sum(1, keepdim=True)
    sums = torch.cat([stretches, rest], dim=1).double()
    stretch, left = _first_beyond(sums, uniforms * sums.sum(1))
    indices = stretch[:, None] * _STRETCH + torch.arange(_STRETCH, device=weights.device)
    numbers = weights.gather(1, indices.clamp(max=width - 1)).double()
    place, _ = _first_beyond(numbers.masked_fill_(indices >= width, 0), left)
    return stretch * _STRETCH + place


def _first_beyond(numbers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Where sums of the first numbers [n, k] of a row pass its target [n], and what is left there.

    At the last number that is not 0, where rounding has put the target behind all.
    """
    sums = numbers.cumsum(1)
    last = (numbers > 0).mul(torch.arange(numbers.shape[1], device=numbers.device)).amax(1)
    first = torch.minimum((sums <= targets[:, None]).sum(1), last)
    before = (sums - numbers).gather(1, first[:, None])[:, 0]
    return first, targets - before


def _penalize(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Lower the logits of tokens already generated, as OpenAI's API defines the two penalties."""
    rows_of, token_ids, penalties = [], [], []
    for index, (sampling, _, generated) in enumerate(rows):
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token_id, count in Counter(generated).items():
                rows_of.append(index)
                token_ids.append(token_id)
                penalties.append(sampling.presence_penalty + count * sampling.frequency_penalty)
    if not penalties:
        return logits
    adjusted = logits.clone()
    cells = torch.tensor([rows_of, token_ids], device=logits.device)
    adjusted[cells[0], cells[1]] -= logits.new_tensor(penalties)
    return adjusted
