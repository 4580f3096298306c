"""From a prompt to the token ids the engine reads, and the text each of them stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from flexgen_helm.adapter.text_tokenizer import TextTokenizer
from flexgen_helm.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A tokenized prompt."""

    token_ids: tuple[int, ...]
    """Token ids, begun by a BOS token where the model has one."""

    texts: tuple[str, ...]
    """Share each token has in the prompt's text; a BOS token that the text does not spell out has
    none, so there is either one per token or one fewer. Empty where nobody wants them."""


def encode_prompt(
    text: str, tokenizer: TextTokenizer, *, start_token: str | None = None, shares: bool = True
) -> EncodedPrompt:
    """Tokenize a prompt and begin it with the BOS token, unless its text does already.

    HELM's language modeling writes the BOS into the prompt; all other prompts lack it.

    Args:
        text: the prompt, in which special tokens count as such.
        tokenizer: the checkpoint's.
        start_token: what an empty prompt consists of for a tokenizer without BOS token.
        shares: whether to find the tokens' texts; the ids alone are often known already.

    Raises:
        InvalidRequestError: an empty prompt, and no token to begin a text with.
    """
    ids = tuple(tokenizer.ids(text))
    texts = _shares(text, [end for _, end in tokenizer.encode(text).offsets]) if shares else ()
    bos = tokenizer.bos_token or ("" if text else start_token)
    if bos and not text.startswith(bos):
        ids = (tokenizer.token_id(bos), *ids)
    if not ids:
        raise InvalidRequestError(
            "prompt='' has no token, at least 1 is needed, and the tokenizer has no token to begin"
            " a text with: give a prompt"
        )
    return EncodedPrompt(token_ids=ids, texts=texts)


def _shares(text: str, ends: Sequence[int]) -> tuple[str, ...]:
    """Cut a text at the end of each token; joined, the shares are the text.

    Tokens that hold parts of one character all end behind it: the first gets it, the others
    nothing.
    """
    bounds = [0, *ends]
    if ends:
        bounds[-1] = len(text)
    return tuple(text[start:end] for start, end in pairwise(bounds))
