"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from operator import index
from typing import Literal

from flexgen_helm.errors import InvalidRequestError
from flexgen_helm.specs.statistics import RequestStatistics

FinishReason = Literal["stop", "length", "endoftext"]
"""Why a completion ended: a stop sequence, `max_tokens` or the last position, or the EOS token."""


MOST_PENALTY = 1e6
"""More than any two logits differ by, and far from what they could not be computed with."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How completions are drawn. Fields mean what they mean in OpenAI's API and in vLLM.

    Raises:
        InvalidRequestError: a field is outside its range.
    """

    max_tokens: int = 16
    """Tokens to generate at most, per completion; 0 generates nothing (prompt scoring)."""

    temperature: float = 0.0
    """0 takes the most probable token (greedy); otherwise logits are divided by it."""

    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities sum to this."""

    num_completions: int = 1
    """Independent completions of the same prompt."""

    stop: str | Sequence[str] | None = ()
    """Texts that end a completion and are no part of it; always a tuple once constructed."""

    seed: int | None = None
    """Distinguishes repeated draws for one prompt; `None` and equal seeds repeat the same draw."""

    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already generated in this completion."""

    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once per earlier occurrence in this completion."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", self.stops)
        _require_count("max_tokens", self.max_tokens, least=0)
        _require(self.temperature >= 0, "temperature", self.temperature, "at least 0 (0 is greedy)")
        _require(
            0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1 (1 keeps all tokens)"
        )
        _require_count("num_completions", self.num_completions, least=1)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            limit = f"a number from {-MOST_PENALTY:g} to {MOST_PENALTY:g}"
            _require(abs(value) <= MOST_PENALTY, name, value, limit)
        texts = all(isinstance(text, str) and text for text in self.stops)
        _require(texts, "stop", self.stops, "non-empty texts; leave an empty one out")

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one."""
        return self.temperature == 0


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prompt and what is wanted of it.

    Raises:
        InvalidRequestError: the prompt has no token (the BOS token alone is a valid prompt), or
            something else than token ids.
    """

    prompt_token_ids: Sequence[int]
    """The prompt as token ids, BOS included: the engine adds nothing."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How completions are drawn."""

    prompt_logprobs: bool = False
    """Whether the log-probability of every prompt token is wanted."""

    def __post_init__(self) -> None:
        try:
            ids = tuple(map(index, self.prompt_token_ids))
        except TypeError:
            raise InvalidRequestError(
                f"prompt_token_ids={self.prompt_token_ids!r:.80} are no whole numbers: encode the"
                " text with the engine's tokenizer"
            ) from None
        object.__setattr__(self, "prompt_token_ids", ids)
        if not self.prompt_token_ids:
            raise InvalidRequestError(
                "prompt_token_ids is empty, at least 1 token is needed: an empty text is the BOS"
                " token alone"
            )


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One generated continuation. `token_ids`, `token_texts` and `logprobs` have equal length."""

    token_ids: tuple[int, ...]
    """Generated tokens up to the stop, without the EOS token and tokens of the stop."""

    token_texts: tuple[str, ...]
    """The share each token has in `text`; joined they are `text`. A token that ends
    inside a multi-byte character has an empty share (the one that completes it has the character),
    and a token the stop cuts in two keeps the part before it."""

    logprobs: tuple[float, ...]
    """Natural log of the model's probability of each token (before temperature and penalties)."""

    text: str
    """The continuation, cut before the first stop."""

    finish_reason: FinishReason
    """Why it ended."""


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What one request got."""

    completions: tuple[Completion, ...]
    """As many as `num_completions`, in a fixed order."""

    prompt_logprobs: tuple[float | None, ...] | None
    """One per prompt token, given those before it; the first is `None`. `None` if not asked for."""

    statistics: RequestStatistics
    """What it cost."""


@dataclass(frozen=True, kw_only=True)
class EngineDescription:
    """What produced a result: everything a table row needs to say about model and machine."""

    model: str
    """Hub id or directory name of the checkpoint."""

    fingerprint: str
    """Digest of the checkpoint's files; with compression and dtype it fixes the output."""

    compression: str
    """Compression label, e.g. ``w4-kv4``."""

    dtype: str
    """Compute dtype, e.g. ``float32``."""

    device: str
    """Compute device, e.g. ``cpu``."""

    num_parameters: int
    """Parameters of the model."""

    weight_bytes: int
    """Bytes all weights occupy as stored."""

    linear_weight_bytes: int
    """Of these, bytes of the linear layers, which is what `weight_bits` acts on."""


def _require_count(name: str, value: object, *, least: int) -> None:
    whole = isinstance(value, Integral) and int(value) >= least
    _require(whole, name, value, f"at least {least}, a whole number")


def _require(condition: bool, name: str, value: object, limit: str) -> None:
    if not condition:
        raise InvalidRequestError(f"{name}={value!r} is out of range: it must be {limit}")
