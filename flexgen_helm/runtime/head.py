"""From last hidden states to tokens and log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence as Sequence_

import torch
from torch import Tensor

from flexgen_helm.errors import NumericsError
from flexgen_helm.model import opt
from flexgen_helm.model.sampling import sample, token_logprobs
from flexgen_helm.offload.weights import EMBEDDINGS
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.sequence import Sequence
from flexgen_helm.specs.chunks import HEAD_ROWS


class Head:
    """The LM head, applied only to the positions it is asked for."""

    def __init__(self, model: Model) -> None:
        self._model = model
        # Kept from one use to the next: smaller blocks would settle in what was given back, and the
        # heap would grow each time by tens of megabytes.
        size = 2, HEAD_ROWS, model.spec.vocab_size
        self._memory = torch.empty(size, dtype=torch.float32, device=model.device)

    def score(self, hidden: Tensor, rows: Sequence_[int], targets: Sequence_[int]) -> list[float]:
        """Log-probabilities of a token each after some rows of hidden states [n, e].

        Raises:
            NumericsError: the model computed NaN.
        """
        logprobs: list[float] = []
        for start in range(0, len(rows), HEAD_ROWS):
            chunk = slice(start, start + HEAD_ROWS)
            logits, memory = self._logits(hidden[self._model.indices(rows[chunk])])
            logprobs += token_logprobs(logits, targets[chunk], memory)
        self._check_numbers(logprobs)
        return logprobs

    def draw(self, hidden: Tensor, rows: Sequence_[int], sequences: Sequence_[Sequence]) -> None:
        """Draw the next token of each sequence from its row of hidden states [n, e].

        Raises:
            NumericsError: the model computed NaN.
        """
        for start in range(0, len(rows), HEAD_ROWS):
            chunk = slice(start, start + HEAD_ROWS)
            logits, memory = self._logits(hidden[self._model.indices(rows[chunk])])
            draws = sample(logits, [sequence.row for sequence in sequences[chunk]], memory)
            self._check_numbers([draw.logprob for draw in draws])
            for sequence, draw in zip(sequences[chunk], draws, strict=True):
                sequence.append(draw)

    def _logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, v] that the next call overwrites, and memory for their log-probabilities."""
        logits, logprobs = self._memory[:, : len(hidden)]
        embeddings = self._model.weights.fetch(EMBEDDINGS)
        return opt.logits(self._model.spec, embeddings, hidden, logits), logprobs

    def _check_numbers(self, logprobs: Sequence_[float]) -> None:
        # One NaN among the logits makes the log-probability of any token of its row NaN.
        if any(math.isnan(logprob) for logprob in logprobs):
            raise NumericsError(
                f"the model computed NaN with dtype={self._model.dtype} and"
                f" compression={self._model.compression.label}: use a dtype of wider range"
                " (bfloat16, float32) or milder compression"
            )
