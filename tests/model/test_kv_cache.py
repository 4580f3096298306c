import pytest
import torch

from flexgen_helm import Compression
from flexgen_helm.model.kv_cache import CacheFormat, CachePool, KeysByHead, KeysValues, SegmentCache
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.quant.quantize import dequantize, quantize
from flexgen_helm.specs.model import ModelSpec

CPU = torch.device("cpu")

SPEC = ModelSpec(
    num_layers=2,
    hidden_size=192,
    num_heads=3,
    ffn_size=64,
    vocab_size=50,
    max_positions=64,
    embedding_size=192,
)


def cache_format(bits=None):
    return CacheFormat(
        spec=SPEC,
        compression=Compression(cache_bits=bits),
        dtype=torch.float32,
        device=CPU,
    )


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return KeysValues(*torch.randn(2, count, SPEC.hidden_size, generator=generator))


def round_trip(rows, bits):
    return (
        rows if bits is None else dequantize(quantize(rows, bits=bits, group_size=64), rows.dtype)
    )


@pytest.mark.parametrize("bits", [None, 8, 4, 3, 2])
def test_a_segment_reads_what_was_written_rounded(bits):
    segment = SegmentCache(cache_format(bits), 5)
    new = [rows(5, layer) for layer in range(2)]
    for layer in range(2):
        segment.write(layer, new[layer].by_head(3))
    for layer in range(2):
        for actual, written in zip(segment.read(layer), new[layer], strict=True):
            expected = round_trip(written, bits).unflatten(1, (3, 64)).transpose(0, 1)
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("bits", [None, 8, 4, 3, 2])
def test_bytes_are_those_of_the_formula(bits):
    segment = SegmentCache(cache_format(bits), 7)
    for layer in range(2):
        segment.write(layer, rows(7, layer).by_head(3))
    assert segment.num_bytes == 7 * cache_format(bits).bytes_per_token


def test_joining_and_slicing_undo_each_other():
    whole = rows(5).by_head(3)
    joined = KeysByHead.join([whole.slice(0, 2), whole.slice(2, 5)])
    assert all(torch.equal(one, other) for one, other in zip(whole, joined, strict=True))


@pytest.mark.parametrize("bits", [None, 4])
def test_a_pool_reads_each_slot_by_head_and_finite_beyond(bits):
    pool = CachePool(cache_format(bits), 2, 4)
    new = rows(5)
    pool.write(1, RowCells(range(5), [0, 0, 0, 1, 1], [0, 1, 2, 0, 1], CPU), new)
    for room, written in zip(pool.read(1), new, strict=True):
        assert room.shape == (2, 3, 4, 64)
        expected = round_trip(written, bits).unflatten(1, (3, 64)).transpose(0, 1)
        assert torch.equal(room[0, :, :3], expected[:, :3])
        assert torch.equal(room[1, :, :2], expected[:, 3:])
        assert torch.isfinite(room).all()


@pytest.mark.parametrize("bits", [None, 4])
def test_gathering_moves_slots_as_they_are(bits):
    one, other = CachePool(cache_format(bits), 2, 3), CachePool(cache_format(bits), 1, 2)
    for layer in range(2):
        one.write(layer, RowCells(range(2), [0, 1], [0, 2], CPU), rows(2, layer))
        other.write(layer, RowCells([0], [0], [1], CPU), rows(1, 9))
    gathered = CachePool.gather(
        [(other, torch.tensor([0])), (one, torch.tensor([1]))], lengths=[2, 3], capacity=5
    )
    assert (gathered.num_slots, gathered.capacity) == (2, 5)
    for which in range(2):
        room = gathered.read(1)[which]
        assert torch.equal(room[0, :, :2], other.read(1)[which][0])
        assert torch.equal(room[1, :, :3], one.read(1)[which][1])
