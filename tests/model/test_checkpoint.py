import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexgen_helm.errors import CheckpointError, InvalidSettingError
from flexgen_helm.model.checkpoint import CheckpointReader, fingerprint, read_spec, resolve
from flexgen_helm.model.dtypes import resolve_device, resolve_dtype
from flexgen_helm.model.loading import load_weights
from flexgen_helm.offload.weights import EMBEDDINGS, layer_part
from flexgen_helm.specs.compression import Compression
from tests.conftest import VARIANTS, byte_tokenizer, save_random_checkpoint


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def load(path, compression=None, dtype=torch.float32):
    return load_weights(
        CheckpointReader(path),
        read_spec(path),
        compression or Compression(),
        dtype=dtype,
        device=torch.device("cpu"),
    )


def assert_same_weights(path, other):
    left, right = load(path), load(other)
    for part in [EMBEDDINGS, *map(layer_part, range(read_spec(path).num_layers))]:
        ours, theirs = left.fetch(part), right.fetch(part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(dense(ours[name]), dense(theirs[name])) for name in ours)


def dense(tensor):
    """Undo oneDNN's order."""
    return tensor.to_dense() if tensor.is_mkldnn else tensor


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("label", ["none", "w2", "w3", "w4", "w8", "w4-g32", "w4-g128"])
def test_stored_bytes_are_those_of_the_formulas(tmp_path, variant, label):
    model = save_random_checkpoint(tmp_path, byte_tokenizer(), **VARIANTS[variant])
    spec, compression = read_spec(tmp_path), Compression.parse(label)
    weights = load(tmp_path, compression, dtype=torch.bfloat16)
    assert weights.num_bytes == spec.weight_bytes(compression, dtype_bytes=2)
    assert weights.linear_bytes == spec.linear_weight_bytes(compression, dtype_bytes=2)
    assert spec.num_parameters == sum(p.numel() for p in model.parameters())


def test_sharded_and_pickled_checkpoints_hold_the_same(checkpoint, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    sharded, pickled, pickled_shards, bare = (tmp_path / n for n in ("s", "p", "ps", "bare"))
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    for directory, save, pattern, index in (
        (sharded, save_file, "model-{}.safetensors", "model.safetensors.index.json"),
        (pickled_shards, torch.save, "pytorch_model-{}.bin", "pytorch_model.bin.index.json"),
    ):
        shutil.copytree(checkpoint, directory)
        (directory / "model.safetensors").unlink()
        weight_map = {}
        for number, half in enumerate(halves):
            save(half, directory / pattern.format(number))
            weight_map |= dict.fromkeys(half, pattern.format(number))
        (directory / index).write_text(json.dumps({"weight_map": weight_map}))
    shutil.copytree(checkpoint, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(tensors, pickled / "pytorch_model.bin")
    shutil.copytree(checkpoint, bare)
    stripped = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(stripped, bare / "model.safetensors")
    for other in (sharded, pickled, pickled_shards, bare):
        assert_same_weights(checkpoint, other)


def test_pickled_code_is_not_executed(copy, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (copy / "model.safetensors").unlink()
    torch.save({"model.decoder.embed_tokens.weight": Trap()}, copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        load(copy)
    assert not (tmp_path / "sprung").exists()


def damage(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


FC1 = "model.decoder.layers.1.fc1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FC1), "tensor 'decoder.layers.1.fc1.weight' is missing .* incomplete"),
        (
            lambda t: t.update({FC1: t[FC1].T.contiguous()}),
            r"'decoder.layers.1.fc1.weight' .* has shape \(64, 128\), .* asks for \(128, 64\)",
        ),
        (
            lambda t: t[FC1].view(-1)[:1].fill_(torch.nan),
            "'decoder.layers.1.fc1.weight' .* has a NaN or an infinity: the checkpoint is damaged",
        ),
    ],
)
def test_damaged_tensors_are_named(copy, change, message):
    damage(copy, change)
    with pytest.raises(CheckpointError, match=message):
        load(copy)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json is missing: .* is not a checkpoint directory"),
        ("config.json", b"{", "config.json is no valid JSON"),
        ("config.json", b"[]", "config.json holds no JSON object: fetch it again"),
        ("config.json", b'{"model_type": "opt"}', "hidden_size=None in config.json is not possibl"),
        ("config.json", b'{"model_type": "gpt2"}', "model_type='gpt2' .* is not supported"),
        ("model.safetensors", None, "holds no weights: expected model.safetensors"),
        ("model.safetensors", b"\0" * 16, "model.safetensors cannot be read .*: fetch it again"),
    ],
)
def test_missing_and_damaged_files_are_named(copy, file, content, message):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(copy)


def test_a_file_that_cannot_be_read_is_named(copy):
    (copy / "config.json").unlink()
    (copy / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="config.json cannot be read .*: fetch it again"):
        load(copy)


def test_missing_shards_are_named(copy):
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-1.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"shard .*model-1.safetensors is missing"):
        load(copy)


@pytest.mark.parametrize("index", [{}, {"weight_map": ["model-1.safetensors"]}])
def test_an_index_without_shards_is_named(copy, index):
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="index.json has no weight_map, .*: fetch it again"):
        load(copy)


def test_shards_cannot_point_outside_the_checkpoint(copy, tmp_path):
    (copy / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"copy/outside.safetensors is missing"):
        load(copy)


def test_fingerprint_tells_files_apart(checkpoint, copy):
    assert fingerprint(copy) == fingerprint(checkpoint)
    damage(copy, lambda t: t[FC1].view(-1)[-1:].add_(1))
    changed_weights = fingerprint(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    assert len({fingerprint(checkpoint), changed_weights, fingerprint(copy)}) == 3


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "tokenizer.model"])
def test_fingerprint_tells_tokenizers_apart(copy, name):
    fingerprints = set()
    for content in (b"a", b"b"):
        (copy / name).write_bytes(content)
        fingerprints.add(fingerprint(copy))
    assert len(fingerprints) == 2


@pytest.mark.parametrize("name", ["/no/such/directory", "./nowhere", "opt-125m"])
def test_what_is_neither_directory_nor_hub_id_is_refused(name):
    with pytest.raises(CheckpointError, match=f"checkpoint '{name}' is no directory here: give"):
        resolve(name)


def test_unreachable_hub_ids_are_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match="checkpoint 'nobody/nothing' cannot be had from the hub"
    ):
        resolve("nobody/nothing")


@pytest.mark.parametrize("cached", ["pytorch_model.bin", "model.safetensors"])
def test_a_whole_snapshot_is_used_without_network(tmp_path, monkeypatch, cached):
    (tmp_path / cached).touch()

    def snapshot_download(repo, *, allow_patterns, local_files_only):
        assert local_files_only, "no network is needed"
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve("facebook/opt-125m") == tmp_path


def test_an_interrupted_download_is_finished(tmp_path, monkeypatch):
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "pytorch_model-1.bin").touch()

    def snapshot_download(repo, *, allow_patterns, local_files_only):
        if not local_files_only and "*.bin" in allow_patterns:
            (tmp_path / "pytorch_model-2.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve("facebook/opt-30b") == tmp_path
    assert (tmp_path / "pytorch_model-2.bin").exists()


def test_dtype_names():
    assert resolve_dtype("float16", "cpu") == "float16"
    assert resolve_dtype("auto", "cpu") in ("float32", "bfloat16")
    with pytest.raises(
        InvalidSettingError, match="dtype='int8' is not supported: use 'auto', 'float32'"
    ):
        resolve_dtype("int8")


def test_device_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    for device in ("gpu", "cuda", "cuda:1"):
        message = f"device='{device}' is not here: use 'auto', 'cpu'"
        with pytest.raises(InvalidSettingError, match=message):
            resolve_device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(InvalidSettingError, match="use 'auto', 'cuda', 'cuda:0', 'cuda:1', 'cpu'"):
        resolve_device("cuda:2")
