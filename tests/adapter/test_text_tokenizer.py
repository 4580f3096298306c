"""Against transformers, which the tokenizer comes from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.adapter.text_tokenizer import TextTokenizer, describe_tokenizer, load_description
from tests.conftest import byte_tokenizer

BYTES = byte_tokenizer()
TEXTS = [
    "",
    " ",
    "Hello world, a  b\n\n\tc",
    "naïve 東京 ☃🤗 don't",
    "</s> in </s>between<pad>",
    "word " * 300,
]


def assert_same(theirs, text):
    ours = TextTokenizer(describe_tokenizer(theirs))
    ids = theirs.encode(text, add_special_tokens=False)
    assert list(ours.ids(text)) == ids
    for max_len in (0, 1, 7, 10_000):
        options = {"truncation": True, "max_length": max_len, "add_special_tokens": False}
        assert list(ours.cut_ids(text, max_len)) == theirs.encode(text, **options)
    tokens = theirs.tokenize(text)
    assert ours.texts(text) == [theirs.convert_tokens_to_string([token]) for token in tokens]
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_the_real_tokenizer(opt_tokenizer, text):
    assert_same(opt_tokenizer, text)


@given(text=st.text())
def test_any_text(text):
    assert_same(BYTES, text)


def test_texts_are_cut_on_the_tokenizers_side():
    tokenizer = byte_tokenizer()
    tokenizer.truncation_side = "left"
    assert_same(tokenizer, "abcd")
    ours = TextTokenizer(describe_tokenizer(tokenizer))
    assert ours.decode(ours.cut_ids("abcd", 2)) == "cd"


def test_a_text_is_tokenized_once(monkeypatch):
    tokenizer = TextTokenizer(describe_tokenizer(BYTES))
    first = tokenizer.ids("a text")
    monkeypatch.setattr(tokenizer, "encode", pytest.fail)
    assert tokenizer.ids("a text") is first


def test_special_tokens_have_ids():
    assert TextTokenizer(describe_tokenizer(BYTES)).token_id("</s>") == BYTES.eos_token_id


def test_transformers_loads_it(byte_checkpoint):
    description = load_description(str(byte_checkpoint), use_fast=True)
    assert description.bos_token == "</s>"
    assert list(TextTokenizer(description).ids("ab")) == BYTES.encode(
        "ab", add_special_tokens=False
    )


def test_without_files_transformers_says_what_is_missing(tmp_path):
    with pytest.raises(Exception, match=str(tmp_path)):
        load_description(str(tmp_path / "nothing"))
