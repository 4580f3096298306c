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

from flexgen_helm.specs.request import GenerationRequest, SamplingParams


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
    token_ids = adjusted.argmax(dim=-1).tolist()
    for index, row in enumerate(rows):
        if not row.sampling.greedy:
            token_ids[index] = _draw(adjusted[index], row)
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


def distribution(logits: Tensor, sampling: SamplingParams) -> np.ndarray:
    """Probabilities [v] (float64) that a token is drawn with, given adjusted logits [v]."""
    scaled = logits.double().cpu().numpy()
    scaled = (scaled - scaled.max()) / sampling.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    return probabilities if sampling.top_p == 1 else _nucleus(probabilities, sampling.top_p)


def _draw(logits: Tensor, row: Row) -> int:
    candidates = np.flatnonzero(probabilities := distribution(logits, row.sampling))
    cumulative = np.cumsum(probabilities[candidates])
    uniform = row.random.uniform(len(row.generated)) * cumulative[-1]
    # The product may round up to the sum itself, which would point behind the last candidate.
    index = min(np.searchsorted(cumulative, uniform, side="right"), len(candidates) - 1)
    return int(candidates[index])


def _nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    """Keep the smallest set of most probable tokens that reaches `top_p`, renormalised."""
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros_like(probabilities)
    kept[order[before < top_p]] = probabilities[order[before < top_p]]
    return kept / kept.sum()


def _penalize(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Lower the logits of tokens already generated, as OpenAI's API defines the two penalties."""
    penalties = {
        index: row
        for index, row in enumerate(rows)
        if row.generated and (row.sampling.presence_penalty or row.sampling.frequency_penalty)
    }
    if not penalties:
        return logits
    adjusted = logits.clone()
    for index, (sampling, _, generated) in penalties.items():
        for token_id, count in Counter(generated).items():
            adjusted[index, token_id] -= (
                sampling.presence_penalty + count * sampling.frequency_penalty
            )
    return adjusted
