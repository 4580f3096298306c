import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.adapter.prompts import encode_prompt
from flexgen_helm.adapter.text_tokenizer import TextTokenizer, describe_tokenizer
from flexgen_helm.errors import InvalidRequestError
from tests.conftest import byte_tokenizer

TOKENIZER = TextTokenizer(describe_tokenizer(byte_tokenizer()))
BOS = 2


def without_bos():
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    return TextTokenizer(describe_tokenizer(tokenizer))


@pytest.mark.parametrize(
    ("text", "num_bos", "texts"),
    [
        ("ab", 1, ("a", "b")),
        ("", 1, ()),
        ("</s>ab", 1, ("</s>", "a", "b")),
        ("</s></s>a", 2, ("</s>", "</s>", "a")),
        (" </s>", 2, (" ", "</s>")),
    ],
)
def test_there_is_one_bos_unless_the_text_says_more(text, num_bos, texts):
    prompt = encode_prompt(text, TOKENIZER)
    assert prompt.token_ids[0] == BOS
    assert prompt.token_ids.count(BOS) == num_bos
    assert prompt.texts == texts


@given(text=st.text())
def test_texts_join_to_the_prompt_one_per_token(text):
    prompt = encode_prompt(text, TOKENIZER)
    implicit = 0 if text.startswith("</s>") else 1
    assert "".join(prompt.texts) == text
    assert len(prompt.token_ids) == len(prompt.texts) + implicit
    assert TOKENIZER.decode(prompt.token_ids[implicit:]) == text


def test_the_real_tokenizer_does_the_same(opt_tokenizer):
    text = " naïve 東京 ☃🤗 don't </s> stop  "
    prompt = encode_prompt(text, TextTokenizer(describe_tokenizer(opt_tokenizer)))
    assert prompt.token_ids == tuple(opt_tokenizer(text).input_ids)
    assert "".join(prompt.texts) == text
    assert len(prompt.token_ids) == len(prompt.texts) + 1


def test_a_tokenizer_without_bos_adds_none():
    prompt = encode_prompt("a", without_bos(), start_token="</s>")
    assert len(prompt.token_ids) == len(prompt.texts) == 1


def test_without_bos_an_empty_prompt_is_the_start_token():
    prompt = encode_prompt("", without_bos(), start_token="</s>")
    assert prompt.token_ids == (BOS,)
    assert prompt.texts == ()


def test_an_empty_prompt_without_any_start_is_refused():
    with pytest.raises(InvalidRequestError, match="prompt='' has no token, at least 1 is needed"):
        encode_prompt("", without_bos())
