from dataclasses import replace

import pytest
import torch
from transformers import OPTForCausalLM

from flexgen_helm.bench.checkpoint import SHAPES, random_checkpoint

TINY = replace(SHAPES["tiny"], vocab_size=64, max_position_embeddings=32)


@pytest.fixture
def tokenizer(tmp_path):
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    (directory / "vocab.json").write_text("{}")
    return directory


def test_opt_125m_has_its_number_of_parameters():
    shape = SHAPES["opt-125m"]
    h, f = shape.hidden_size, shape.ffn_dim
    layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    embeddings = (shape.vocab_size + shape.max_position_embeddings + 2) * h
    assert embeddings + shape.num_hidden_layers * layer + 2 * h == 125_239_296


def test_weights_are_the_same_every_time_and_leave_the_generator_alone(tokenizer, tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    paths = [
        random_checkpoint(TINY, tokenizer=tokenizer, parent=tmp_path / name) for name in ("a", "b")
    ]
    assert torch.rand(1) == expected
    first, second = (OPTForCausalLM.from_pretrained(path).state_dict() for path in paths)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tokenizer_is_beside_the_model_and_the_end_token_has_no_weight(tokenizer, tmp_path):
    path = random_checkpoint(TINY, tokenizer=tokenizer, parent=tmp_path)
    assert (path / "vocab.json").read_text() == "{}"
    model = OPTForCausalLM.from_pretrained(path)
    assert not model.lm_head.weight[model.config.eos_token_id].any()


def test_a_checkpoint_is_written_once_and_whole(tokenizer, tmp_path):
    path = random_checkpoint(TINY, tokenizer=tokenizer, parent=tmp_path / "work")
    (path / "model.safetensors").write_text("kept")
    assert random_checkpoint(TINY, tokenizer=tokenizer, parent=tmp_path / "work") == path
    assert (path / "model.safetensors").read_text() == "kept"
    other = replace(TINY, name="other")
    with pytest.raises(FileNotFoundError):
        random_checkpoint(other, tokenizer=tmp_path / "nowhere", parent=tmp_path / "work")
    assert [child.name for child in (tmp_path / "work").iterdir()] == [path.name]
