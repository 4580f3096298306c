"""One completion in the making."""

from __future__ import annotations

from flexgen_helm.model.sampling import Draw, Row, SequenceRandom
from flexgen_helm.runtime.detokenizer import Detokenizer, Tokenizer
from flexgen_helm.runtime.statistics import Cost
from flexgen_helm.specs.request import Completion, FinishReason, GenerationRequest


class Sequence:
    """Tokens and text of one completion, and whether it has ended.

    Args:
        request: what it completes.
        completion_index: which of the request's completions it is.
        tokenizer: turns tokens into text.
        eos_token_ids: tokens that end it.
        max_positions: positions of the model; the last token drawn needs none.
    """

    def __init__(
        self,
        request: GenerationRequest,
        completion_index: int,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: tuple[int, ...],
        max_positions: int,
    ) -> None:
        self.decode = Cost()
        """What its tokens have cost, after the first."""
        self.decode_rows = 0
        self.decode_products = 0.0
        self.generated: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._random = SequenceRandom(request, completion_index)
        self._detokenizer = Detokenizer(tokenizer)
        self._eos_token_ids = eos_token_ids
        self._max_tokens = max_new_tokens(request, max_positions)
        self._logprobs: list[float] = []
        self._shares: list[str] = []
        self._text = ""
        if self._max_tokens == 0:
            self.finish_reason = "length"

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def position(self) -> int:
        """Position of the token generated last, which the next decode step computes."""
        return len(self._request.prompt_token_ids) + len(self.generated) - 1

    @property
    def row(self) -> Row:
        """What the next token is drawn with."""
        return Row(self._request.sampling, self._random, self.generated)

    def add_decode(self, cost: Cost, *, rows: int) -> None:
        """Note what a token cost, and the rows of the matrix products that computed it."""
        self.decode += cost
        self.decode_rows += 1
        self.decode_products += 1 / rows

    def append(self, draw: Draw) -> None:
        """Add a token, and end where it says so."""
        self.generated.append(draw.token_id)
        if draw.token_id in self._eos_token_ids:
            self._end("endoftext")
            return
        self._logprobs.append(draw.logprob)
        self._add_text(self._detokenizer.append(draw.token_id))
        if not self.finished and len(self.generated) == self._max_tokens:
            self._end("length")

    def completion(self) -> Completion:
        """Return the finished completion."""
        assert self.finish_reason is not None, "a completion is read once it has ended"
        return Completion(
            token_ids=tuple(self.generated[: len(self._shares)]),
            token_texts=tuple(self._shares),
            logprobs=tuple(self._logprobs),
            text=self._text,
            finish_reason=self.finish_reason,
        )

    def _add_text(self, share: str) -> None:
        self._shares.append(share)
        self._text += share
        stop_at = self._find_stop(len(share))
        if stop_at is not None:
            self._cut(stop_at)
            self.finish_reason = "stop"

    def _find_stop(self, num_new: int) -> int | None:
        """Where the first stop begins that the last `num_new` characters complete."""
        found = [
            self._text.find(stop, max(0, len(self._text) - num_new - len(stop) + 1))
            for stop in self._request.sampling.stops
        ]
        return min((index for index in found if index >= 0), default=None)

    def _cut(self, end: int) -> None:
        """Drop the text from `end` on, and the tokens that have no share in what remains."""
        self._text = self._text[:end]
        begin = 0
        for index, share in enumerate(self._shares):
            if begin >= end:
                del self._shares[index:], self._logprobs[index:]
                return
            self._shares[index] = share[: end - begin]
            begin += len(share)

    def _end(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        rest = self._detokenizer.flush()
        if rest:
            self._shares.pop()  # the empty share of the token whose character stayed incomplete
            self._add_text(rest)


def max_new_tokens(request: GenerationRequest, max_positions: int) -> int:
    """Tokens a completion may have: `max_tokens`, or fewer where the positions run out."""
    room = max_positions - len(request.prompt_token_ids) + 1
    return min(request.sampling.max_tokens, room)
