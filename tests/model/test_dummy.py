import torch

from flexgen_helm.model import dummy
from flexgen_helm.model.checkpoint import fingerprint, open_checkpoint, read_spec
from flexgen_helm.model.dummy import write_dummy
from flexgen_helm.specs.opt_sizes import SIZES


def test_the_same_numbers_every_time(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(dummy, "BLOCK", 100)
    one, other = (
        write_dummy("opt-1.3b", tokenizer=checkpoint, directory=tmp_path / str(seed), seed=seed)
        for seed in (0, 1)
    )
    name, shape = "decoder.layers.3.fc1.weight", (16, 32)
    tensor = open_checkpoint(one).read(name, shape)
    assert tensor.shape == shape
    assert torch.equal(tensor, open_checkpoint(one).read(name, shape))
    assert not torch.equal(tensor, open_checkpoint(other).read(name, shape))
    assert not torch.equal(tensor, open_checkpoint(one).read("decoder.layers.4.fc1.weight", shape))
    assert 0.015 < tensor.float().std() < 0.025
    assert fingerprint(one) != fingerprint(other)


def test_norms_and_biases_do_nothing(checkpoint, tmp_path):
    reader = open_checkpoint(write_dummy("opt-1.3b", tokenizer=checkpoint, directory=tmp_path))
    assert reader.read("decoder.final_layer_norm.weight", (3,)).tolist() == [1, 1, 1]
    assert reader.read("decoder.final_layer_norm.bias", (3,)).tolist() == [0, 0, 0]


def test_sizes_are_those_of_the_names(checkpoint, tmp_path):
    for size in SIZES:
        directory = write_dummy(f"opt-{size}", tokenizer=checkpoint, directory=tmp_path / size)
        number, unit = float(size[:-1]), {"m": 1e6, "b": 1e9}[size[-1]]
        assert abs(read_spec(directory).num_parameters / (number * unit) - 1) < 0.06
