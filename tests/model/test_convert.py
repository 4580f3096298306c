from types import SimpleNamespace

import pytest
import torch

from flexgen_helm.errors import DiskFullError, StoreError
from flexgen_helm.model import convert as conversion
from flexgen_helm.model.checkpoint import CheckpointReader, fingerprint, read_spec
from flexgen_helm.model.convert import convert
from flexgen_helm.model.linear import laid_out
from flexgen_helm.model.loading import load_weights
from flexgen_helm.offload.store import StoreIdentity, WeightStore
from flexgen_helm.offload.streamed import StreamedWeights
from flexgen_helm.offload.weights import layer_part
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.placement import Placement, place_evenly
from tests.conftest import VARIANTS, byte_tokenizer, save_random_checkpoint

CPU = torch.device("cpu")
IDENTITY = StoreIdentity(fingerprint="f", weight_bits=None, group_size=64, dtype="float32")


def converted(path, directory, label="none", dtype="float32", source=None):
    identity = StoreIdentity.of(fingerprint(path), Compression.parse(label), dtype)
    return convert(
        source or CheckpointReader(path),
        read_spec(path),
        identity,
        dtype=getattr(torch, dtype),
        directory=directory,
        device=CPU,
    )


def streamed(store, placement, *, overlap=True):
    spec_layers = [name for name in store.part_names if name != "embeddings"]
    tiers = place_evenly([store.linear_sizes(name) for name in spec_layers], placement)
    placed = dict(zip(spec_layers, tiers, strict=True))
    return StreamedWeights(
        store,
        placed,
        dtype=getattr(torch, store.identity.dtype),
        device=CPU,
        lay_out=laid_out,
        overlap=overlap,
    )


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    path, store = tmp_path / "checkpoint", tmp_path / "stores" / "one"
    save_random_checkpoint(path, byte_tokenizer())
    needed = converted(path, tmp_path / "other").num_bytes
    for free, fits in ((needed - 5000, False), (needed + 5000, True)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _, usage=usage: usage)
        if fits:
            assert converted(path, store).num_bytes == needed
        else:
            with pytest.raises(DiskFullError, match="takes .* more, and .* are free where .*one"):
                converted(path, store)
            assert not store.exists()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("label", ["none", "w3", "w4-g32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fractions", [{"disk": 1}, {"device": 0.3, "host": 0.3, "disk": 0.4}])
def test_streamed_weights_are_those_of_the_checkpoint(tmp_path, variant, label, dtype, fractions):
    path = tmp_path / "checkpoint"
    save_random_checkpoint(path, byte_tokenizer(), **VARIANTS[variant])
    spec, compression = read_spec(path), Compression.parse(label)
    resident = load_weights(
        CheckpointReader(path), spec, compression, dtype=getattr(torch, dtype), device=CPU
    )
    weights = streamed(converted(path, tmp_path / "store", label, dtype), Placement(**fractions))
    order = ["embeddings", *map(layer_part, range(spec.num_layers))]
    for part in [*order, *order, layer_part(1), layer_part(0), layer_part(0)]:
        expected, actual = resident.fetch(part), weights.fetch(part)
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(plain(actual[name]), plain(tensor)), name
    assert weights.num_bytes == resident.num_bytes
    assert weights.linear_bytes == resident.linear_bytes
    weights.close()


def plain(tensor):
    """A tensor that can be compared, also if it is laid out for products."""
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


def test_an_interrupted_conversion_goes_on_where_it_was(checkpoint, tmp_path):
    read = []
    reader = CheckpointReader(checkpoint)

    def interrupted(name, shape):
        if name == "decoder.layers.2.fc1.weight" and len(read) < 100:
            read.extend([None] * 100)
            raise KeyboardInterrupt
        read.append(name)
        return reader.read(name, shape)

    source = SimpleNamespace(read=interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(checkpoint, tmp_path, source=source)
    files = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert sorted(files) == [f"{part}.safetensors" for part in ("embeddings", "layer.0", "layer.1")]
    with pytest.raises(StoreError, match="is no whole weight store .*flexgen-helm convert"):
        WeightStore(tmp_path, IDENTITY)

    (tmp_path / f".layer.2.safetensors.{2**30}.tmp").touch()  # of one that was killed
    read.clear()
    read.extend([None] * 100)
    store = converted(checkpoint, tmp_path, source=source)
    assert all("layers.2" in name for name in read[100:])
    assert sorted({file.name for file in tmp_path.iterdir()} - files.keys()) == [
        "layer.2.safetensors",
        "store.json",
    ]
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in files.items())
    other = converted(checkpoint, tmp_path / "at once")
    for part in store.part_names:
        assert store.part(part).path.read_bytes() == other.part(part).path.read_bytes()


@pytest.mark.parametrize("manifest", ["", "{}", "[]", '{"identity": {'])
def test_a_damaged_manifest_is_made_anew(checkpoint, tmp_path, manifest):
    store = converted(checkpoint, tmp_path)
    whole = (tmp_path / "store.json").read_bytes()
    times = [store.part(name).path.stat().st_mtime_ns for name in store.part_names]
    (tmp_path / "store.json").write_text(manifest)
    with pytest.raises(StoreError, match="is no whole weight store .*flexgen-helm convert"):
        WeightStore(tmp_path, store.identity)
    store = converted(checkpoint, tmp_path)
    assert (tmp_path / "store.json").read_bytes() == whole
    assert [store.part(name).path.stat().st_mtime_ns for name in store.part_names] == times


def test_a_store_of_another_setting_is_not_mistaken(checkpoint, tmp_path):
    converted(checkpoint, tmp_path, "w4")
    with pytest.raises(StoreError, match="was made from .*delete it, or convert the checkpoint in"):
        converted(checkpoint, tmp_path, "w8")


def test_how_the_cache_is_compressed_makes_no_other_store(checkpoint, tmp_path):
    stores = [converted(checkpoint, tmp_path, label) for label in ("none", "kv4-g32", "kv2-g128")]
    assert {store.identity for store in stores} == {stores[0].identity}


def test_parts_of_another_store_are_written_anew(checkpoint, tmp_path):
    converted(checkpoint, tmp_path, "w4")
    (tmp_path / "store.json").unlink()
    store = converted(checkpoint, tmp_path, "w8")
    assert all(store.part(name).identity == store.identity.text for name in store.part_names)


def test_a_part_that_was_exchanged(checkpoint, tmp_path):
    store = converted(checkpoint, tmp_path / "a", "w4")
    other = converted(checkpoint, tmp_path / "b", "w8")
    other.part("layer.1").path.replace(store.part("layer.1").path)
    with pytest.raises(StoreError, match="layer.1.safetensors belongs to another store"):
        store.part("layer.1")


@pytest.mark.parametrize("fractions", [{"disk": 1}, {"host": 1}])
def test_a_changed_byte_is_noticed(checkpoint, tmp_path, fractions):
    store = converted(checkpoint, tmp_path)
    path = store.part("layer.1").path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="in .*layer.1.safetensors is not what was written"):
        streamed(store, Placement(**fractions)).fetch("layer.1")


def test_a_directory_that_cannot_be_written(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written .*name another --offload-dir"):
        converted(checkpoint, tmp_path / "file")


def test_pieces_of_any_size_make_the_same_store(checkpoint, tmp_path, monkeypatch):
    whole = converted(checkpoint, tmp_path / "whole", "w4")
    monkeypatch.setattr(conversion, "CONVERTED_AT_ONCE", 100)
    pieces = converted(checkpoint, tmp_path / "pieces", "w4")
    for part in whole.part_names:
        assert whole.part(part).path.read_bytes() == pieces.part(part).path.read_bytes()
