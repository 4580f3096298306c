"""A checkpoint's tokenizer without transformers, which takes as long to import as all of HELM.

transformers still decides what the tokenizer is: it loads it once, wherever it is imported, and
what is handed on is the part of it that tokenizes, which is a library of its own.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import Encoding, Tokenizer

REMEMBERED_TEXTS = 10_000
"""HELM asks for the tokens of a prompt when it fits it into the context window and again when it
counts them for its metrics; in between, the client needs them. The prompts of large suites and
their tokens are some 100 MB."""


@dataclass(frozen=True, kw_only=True)
class TokenizerDescription:
    """All there is to say about a fast tokenizer."""

    serialized: str
    """Content of a `tokenizer.json`."""

    bos_token: str | None
    """Begins a text."""

    truncation_side: str
    """Where a text that is too long is cut: ``right`` or ``left``."""

    @property
    def fingerprint(self) -> str:
        """Digest of what decides which tokens a prompt is, by content, wherever it came from."""
        text = f"{self.bos_token}\0{self.serialized}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def describe_tokenizer(tokenizer: Any) -> TokenizerDescription:
    """Describe a fast transformers tokenizer."""
    return TokenizerDescription(
        serialized=tokenizer.backend_tokenizer.to_str(),
        bos_token=tokenizer.bos_token,
        truncation_side=tokenizer.truncation_side,
    )


def load_description(name_or_path: str, **kwargs: Any) -> TokenizerDescription:
    """Have transformers load a tokenizer, from local files if they are there, as HELM does."""
    from transformers import AutoTokenizer

    from flexgen_helm.runtime.tokenizer import local_tokenizer

    try:
        if not kwargs:  # as the engine loads it
            return describe_tokenizer(local_tokenizer(name_or_path))
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, local_files_only=True, **kwargs)
    except OSError:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    return describe_tokenizer(tokenizer)


class TextTokenizer:
    """Tokenizes as the transformers tokenizer it was described by. Safe to use from threads."""

    def __init__(self, description: TokenizerDescription) -> None:
        self._backend: Tokenizer = Tokenizer.from_str(description.serialized)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._truncation_side = description.truncation_side
        self._remembered = lru_cache(REMEMBERED_TEXTS)(self._ids)
        self.bos_token = description.bos_token
        self.fingerprint = description.fingerprint

    def ids(self, text: str) -> Sequence[int]:
        """Return the ids of a text's tokens; special tokens it spells out count as such."""
        return self._remembered(text)

    def cut_ids(self, text: str, max_len: int) -> Sequence[int]:
        """Return the ids of a text that is cut to a number of tokens."""
        encoding = self.encode(text)
        encoding.truncate(max(max_len, 0), direction=self._truncation_side)
        return encoding.ids

    def encode(self, text: str) -> Encoding:
        """Return all that is known of a text's tokens."""
        return self._backend.encode(text, add_special_tokens=False)

    def texts(self, text: str) -> list[str]:
        """Return the text each token stands for."""
        return [self._backend.decoder.decode([token]) for token in self.encode(text).tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str) -> int:
        """Return the id of a token of the vocabulary."""
        token_id: int | None = self._backend.token_to_id(token)
        assert token_id is not None, token
        return token_id

    def _ids(self, text: str) -> Sequence[int]:
        return array("I", self.encode(text).ids)
