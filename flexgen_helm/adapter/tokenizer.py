"""The tokenizer HELM calls: tokens as the model reads them, and the text they stand for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from helm.common.hierarchical_logger import htrack_block
from helm.common.tokenization_request import (
    DecodeRequest,
    DecodeRequestResult,
    TokenizationRequest,
    TokenizationRequestResult,
    TokenizationToken,
)
from helm.proxy.retry import NonRetriableException
from helm.tokenizers.tokenizer import Tokenizer

from flexgen_helm.adapter.engine_process import ENGINE_PROCESS
from flexgen_helm.adapter.text_tokenizer import TextTokenizer

_LOADING = threading.Lock()
"""HELM adapts in several threads, which all need the tokenizer first."""


class FlexGenTokenizer(Tokenizer):
    """HELM's Hugging Face tokenizer with three things put right for OPT and Galactica.

    HELM's class writes a leading space as ``Ġ`` for all but a few tokenizers it knows by name. It
    keeps every tokenization in SQLite under the tokenizer's *name*: slower than tokenizing by two
    orders of magnitude, and wrong for a local directory whose files have changed. And importing it
    imports transformers and torch.
    """

    def __init__(
        self, tokenizer_name: str, pretrained_model_name_or_path: str, **kwargs: Any
    ) -> None:
        """Make a tokenizer; its files are loaded when it is first used.

        Args:
            tokenizer_name: HELM's name for it.
            pretrained_model_name_or_path: hub id or directory.
            kwargs: for transformers.
        """
        self._name = tokenizer_name
        self._source = pretrained_model_name_or_path
        self._kwargs = tuple(sorted(kwargs.items()))

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """What tokenizes; one per process for each source."""
        with _LOADING:
            return _load(self._source, self._kwargs)

    def tokenize(self, request: TokenizationRequest) -> TokenizationRequestResult:
        values = self._tokenize(request)
        return TokenizationRequestResult(
            success=True,
            cached=False,
            text=request.text,
            tokens=[_token(value) for value in values],
            request_time=0.0,
        )

    def decode(self, request: DecodeRequest) -> DecodeRequestResult:
        text = self.text_tokenizer.decode(request.tokens)
        return DecodeRequestResult(success=True, cached=False, text=text, request_time=0.0)

    def _tokenize(self, request: TokenizationRequest) -> Sequence[int] | Sequence[str]:
        if not request.encode:
            return self.text_tokenizer.texts(request.text)
        if request.truncation:
            return self.text_tokenizer.cut_ids(request.text, request.max_length)
        return self.text_tokenizer.ids(request.text)


@cache
def _load(source: str, kwargs: tuple[tuple[str, Any], ...]) -> TextTokenizer:
    try:
        with htrack_block(f"Loading tokenizer {source}"):
            return TextTokenizer(ENGINE_PROCESS.describe_tokenizer(source, dict(kwargs)))
    except Exception as error:  # HELM would try again for half a minute
        raise NonRetriableException(f"tokenizer {source!r} cannot be loaded: {error}") from error


@cache
def _token(value: int | str) -> TokenizationToken:
    """Make one object for each token of the vocabulary, rather than for each of a text."""
    return TokenizationToken(value)
