"""What there is to be done, as the planner sees it: how many requests, and how long they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from flexgen_helm.errors import WorkloadError
from flexgen_helm.specs.chunks import LEAST_FILLED


@dataclass(frozen=True, kw_only=True)
class RequestLengths:
    """Requests of similar lengths, such as those of a scenario.

    Raises:
        WorkloadError: a number out of range.
    """

    name: str
    num_requests: int
    """Sequences: where several completions of a prompt are wanted, each is one."""

    prompt_len: float
    """Mean tokens of a prompt."""

    max_prompt_len: int
    new_tokens: int
    """Tokens each request may generate."""

    unique_ratio: float = 1.0
    """Prompt tokens that remain when what prompts have in common is counted once, over all."""

    max_shared_len: int | None = None
    """Tokens that any two prompts begin with alike; `None` if nobody has counted."""

    max_cached_len: int | None = None
    """Tokens of a request in the KV cache, with all its completions, at most; those of one if
    `None`."""

    least_filled: float = LEAST_FILLED
    """Part of the longest one's own KV cache that the shortest one's takes, at least: where they
    are stored side by side, the rest is padding. Never less than the default, which is what the
    engine puts up with."""

    scored_part: float = 0.0
    """Part of the requests of which the log-probabilities of prompts are wanted, too."""

    def __post_init__(self) -> None:
        counts = {
            "num_requests": (self.num_requests, 1),
            "prompt_len": (self.prompt_len, 1),
            "max_prompt_len": (self.max_prompt_len, self.prompt_len),
            "new_tokens": (self.new_tokens, 0),
            "max_shared_len": (self.max_shared_len or 0, 0),
            "max_cached_len": (self.max_cached_len or 0, 0),
        }
        for name, (value, least) in counts.items():
            if not isfinite(value) or value < least:
                raise WorkloadError(
                    f"{name}={value!r} of {self.name!r} is out of range: it must be at least"
                    f" {least:g}"
                )
        if not 0 <= self.scored_part <= 1:
            raise WorkloadError(
                f"scored_part={self.scored_part!r} of {self.name!r} is out of range: it is a part"
                " of 1, or 0"
            )
        for name in ("unique_ratio", "least_filled"):
            if not 0 < (part := getattr(self, name)) <= 1:
                raise WorkloadError(
                    f"{name}={part!r} of {self.name!r} is out of range: it is a part of 1"
                )

    @property
    def prompt_tokens(self) -> float:
        """Tokens of all prompts."""
        return self.num_requests * self.prompt_len

    @property
    def own_len(self) -> float:
        """Mean tokens of a prompt that no earlier one begins with."""
        return self.prompt_len * self.unique_ratio

    @property
    def shared_len(self) -> float:
        """Mean tokens of a prompt that others have, too."""
        return self.prompt_len - self.own_len

    @property
    def final_len(self) -> float:
        """Mean tokens of its own that a request has when it ends."""
        return self.own_len + self.new_tokens

    @property
    def longest_shared(self) -> int:
        """Tokens that any two prompts begin with alike, at most."""
        if self.unique_ratio == 1:
            return 0
        return self.max_prompt_len if self.max_shared_len is None else self.max_shared_len

    @property
    def most_cached(self) -> int:
        """Tokens of a request in the KV cache, at most."""
        if not self.decodes:
            return 0
        alone = self.max_prompt_len + self.new_tokens
        return alone if self.max_cached_len is None else self.max_cached_len

    @property
    def decodes(self) -> bool:
        """Whether anything goes on after its first token."""
        return self.new_tokens > 1


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be run with one policy.

    Raises:
        WorkloadError: it is empty.
    """

    name: str
    scenarios: tuple[RequestLengths, ...]

    def __post_init__(self) -> None:
        if not self.scenarios:
            raise WorkloadError(f"workload {self.name!r} has no requests: there is nothing to plan")

    def __iter__(self) -> Iterator[RequestLengths]:
        return iter(self.scenarios)

    @property
    def least_filled(self) -> float:
        """Part of the KV cache that holds tokens, at least; the rest is padding."""
        # Those of several scenarios may be stored side by side, too.
        return self.scenarios[0].least_filled if len(self.scenarios) == 1 else LEAST_FILLED

    @property
    def most_rows(self) -> float:
        """Tokens that are computed in one pass, at most: all prompts, and one of each sequence."""
        return sum(scenario.prompt_tokens + scenario.num_requests for scenario in self)

    @property
    def longest(self) -> int:
        """Tokens of a sequence, at most."""
        return max(lengths.max_prompt_len + lengths.new_tokens for lengths in self)

    @property
    def longest_shared(self) -> int:
        """Tokens that any two prompts begin with alike, at most."""
        return max(lengths.longest_shared for lengths in self)

    @property
    def most_cached(self) -> int:
        """Tokens of a request in the KV cache, at most; none if nothing decodes."""
        return max(lengths.most_cached for lengths in self)

    @property
    def shared_tokens(self) -> float:
        """Tokens that several requests have in common, at most: all that are not computed anew."""
        return sum(lengths.num_requests * lengths.shared_len for lengths in self)

    @property
    def head_rows(self) -> float:
        """Rows that go through the LM head in a pass, at most."""
        return sum(
            lengths.num_requests + lengths.scored_part * lengths.prompt_tokens for lengths in self
        )

    @property
    def cached_tokens(self) -> float:
        """Tokens in the KV cache, with padding, where all requests are in decode together."""
        decoding = (lengths for lengths in self if lengths.decodes)
        tokens = sum(lengths.num_requests * lengths.final_len for lengths in decoding)
        return tokens / self.least_filled

    @property
    def generated_tokens(self) -> int:
        """Tokens generated, at most."""
        return sum(scenario.num_requests * scenario.new_tokens for scenario in self)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Workload:
        """Read what `to_json` has written.

        Raises:
            WorkloadError: something is missing, unknown or out of range.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            scenarios = tuple(RequestLengths(**scenario) for scenario in values["scenarios"])
            return cls(name=values["name"], scenarios=scenarios)
        except (ValueError, TypeError, KeyError) as error:
            raise WorkloadError(
                f"{where} does not say how long requests are ({error}): it has a name, and"
                " scenarios with name, num_requests, prompt_len, max_prompt_len, new_tokens and"
                " unique_ratio"
            ) from error
