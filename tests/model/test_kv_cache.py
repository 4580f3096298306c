import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm import Compression
from flexgen_helm.model.cache_format import CacheFormat, place_cache
from flexgen_helm.model.cache_storage.base import StorageSize
from flexgen_helm.model.kv_cache import CachePool, KeysByHead, KeysValues, SegmentCache
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.offload.spill import Spill
from flexgen_helm.quant.quantize import dequantize, quantize
from flexgen_helm.specs.chunks import RUN_LEN
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.placement import Placement, Tier

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


def cache_format(bits=None, spill=None):
    return CacheFormat(
        spec=SPEC,
        compression=Compression(cache_bits=bits),
        dtype=torch.float32,
        device=CPU,
        tiers=() if spill is None else [(Tier.DISK, Tier.HOST), (Tier.DISK, Tier.DISK)],
        spill=spill,
    )


@pytest.fixture(params=["memory", "disk", "disk, without overlap"])
def spill(request, tmp_path):
    """Where caches are in a test: `None` for memory."""
    if request.param == "memory":
        yield None
        return
    spill = Spill(tmp_path, overlap=request.param == "disk")
    yield spill
    assert spill.peak_bytes
    spill.close()


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return KeysValues(*torch.randn(2, count, SPEC.hidden_size, generator=generator))


def round_trip(rows, bits):
    return (
        rows if bits is None else dequantize(quantize(rows, bits=bits, group_size=64), rows.dtype)
    )


def contents(pool, layer):
    """Keys and values of a pool's layer, copied, as those on disk are only lent."""
    everywhere = torch.arange(pool.capacity).expand(pool.num_slots, SPEC.num_heads, -1)
    with pool.read_keys(layer) as keys:
        return [keys.clone(), pool.values_at(layer, everywhere)]


@pytest.mark.parametrize("bits", [None, 8, 4, 3, 2])
def test_a_segment_reads_what_was_written_rounded(bits, spill):
    segment = SegmentCache(cache_format(bits, spill), 5)
    new = [rows(5, layer) for layer in range(2)]
    for layer in range(2):
        segment.write(layer, new[layer].by_head(3))
    segment.begin_read(1)
    for layer in range(2):
        for actual, written in zip(segment.read(layer), new[layer], strict=True):
            expected = round_trip(written, bits).unflatten(1, (3, 64)).transpose(0, 1)
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("bits", [None, 8, 4, 3, 2])
def test_bytes_are_those_of_the_formula(bits):
    stored = [cache_format(bits).tensors(part) for part in rows(7)]
    num_bytes = 2 * sum(tensor.nbytes for part in stored for tensor in part)  # in two layers
    assert num_bytes == 7 * cache_format(bits).bytes_per_token


def test_joining_and_slicing_undo_each_other():
    whole = rows(5).by_head(3)
    joined = KeysByHead.join([whole.slice(0, 2), whole.slice(2, 5)])
    assert all(torch.equal(one, other) for one, other in zip(whole, joined, strict=True))


@pytest.mark.parametrize("bits", [None, 4])
def test_a_pool_reads_each_slot_by_head_and_finite_beyond(bits, spill):
    pool = CachePool(cache_format(bits, spill), 2, StorageSize(3, 0, 4))
    new = rows(5)
    pool.write(1, RowCells([0, 1, 2], [0, 0, 0], [0, 1, 2], CPU), new)
    pool.write(1, RowCells([3, 4], [1, 1], [0, 1], CPU), new)
    pool.end_prefill(1)
    for part, written in zip(contents(pool, 1), new, strict=True):
        assert part.shape == (2, 3, 4, 64)
        expected = round_trip(written, bits).unflatten(1, (3, 64)).transpose(0, 1)
        assert torch.equal(part[0, :, :3], expected[:, :3])
        assert torch.equal(part[1, :, :2], expected[:, 3:])
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("bits", [None, 4])
def test_a_pool_takes_a_position_of_each_slot_at_a_time(bits, spill):
    pool, plain = (CachePool(cache_format(bits, s), 3, StorageSize(3, 2, 6)) for s in (spill, None))
    steps = [
        RowCells(range(3), [0, 1, 2], [1, 0, 2], CPU),
        RowCells(range(3), [0, 1, 2], [2, 1, 3], CPU),
        RowCells(range(2), [0, 2], [3, 4], CPU),  # the one between has left
    ]
    for each in (pool, plain):
        for step, cells in enumerate(steps):
            each.write(1, cells, rows(3, step))
            each.end_prefill(1)
        each.begin_read(1)
    for actual, expected in zip(contents(pool, 1), contents(plain, 1), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("layer", [0, 1])  # on disk, of layer 0, are only the keys
def test_the_parts_of_a_pool_make_up_the_whole(bits, layer, spill):
    num_later = 2 * RUN_LEN + 3
    pool, plain = (
        CachePool(cache_format(bits, where), 3, StorageSize(3, num_later, 3 + num_later))
        for where in (spill, None)
    )
    for each in (pool, plain):
        each.write(layer, RowCells(range(4), [0, 0, 0, 2], [0, 1, 2, 0], CPU), rows(4))
        each.end_prefill(layer)
    for step in range(num_later):
        slots = [0, 1, 2] if step < 20 else [0, 2]  # the one between had no prompt, and has left
        lengths = {0: 3 + step, 2: 1 + step}
        with pool.read(layer) as parts:
            assert_parts(parts, contents(plain, layer), lengths, one=not spill or layer == 0)
        positions = [step if slot == 1 else lengths[slot] for slot in slots]
        for each in (pool, plain):
            cells = RowCells(range(len(slots)), slots, positions, CPU)
            each.write(layer, cells, rows(len(slots), seed=step + 1))
    for actual, expected in zip(contents(pool, layer), contents(plain, layer), strict=True):
        assert torch.equal(actual, expected)


def assert_parts(parts, whole, lengths, *, one):
    num_last = sum(part.keys.shape[2] for part in parts[1:])
    assert len(parts) == (1 if one else 1 + -(-num_last // RUN_LEN))
    assert all(part.keys.shape[2] <= RUN_LEN for part in parts[1:])
    for which in range(2):
        first, *last = (part[which] for part in parts)
        for slot, length in lengths.items():
            pieces = [first[slot, :, : length - num_last], *(part[slot] for part in last)]
            assert torch.equal(torch.cat(pieces, dim=1), whole[which][slot, :, :length])
        assert all(torch.isfinite(part[which]).all() for part in parts)


@pytest.mark.parametrize("bits", [None, 4])
def test_gathering_moves_slots_as_they_are(bits, spill):
    stored = cache_format(bits, spill)
    one = CachePool(stored, 2, StorageSize(3, 0, 3))
    other = CachePool(stored, 1, StorageSize(2, 0, 2))
    for layer in range(2):
        one.write(layer, RowCells(range(2), [0, 1], [0, 2], CPU), rows(2, layer))
        other.write(layer, RowCells([0], [0], [1], CPU), rows(1, 9))
        one.end_prefill(layer)
        other.end_prefill(layer)
    from_other, from_one = contents(other, 1), contents(one, 1)
    gathered = CachePool.gather(
        [(other, torch.tensor([0])), (one, torch.tensor([1]))],
        lengths=[2, 3],
        size=StorageSize(3, 2, 5),
    )
    assert (gathered.num_slots, gathered.capacity) == (2, 5)
    for which in range(2):
        part = contents(gathered, 1)[which]
        assert torch.equal(part[0, :, :2], from_other[which][0])
        assert torch.equal(part[1, :, :3], from_one[which][1])


@pytest.mark.parametrize("num_layers", [12, 24, 48, 96])
@given(device=st.floats(0, 1), part=st.floats(0, 1))
def test_the_fractions_of_a_cache_are_kept(num_layers, device, part):
    placement = Placement(device=device, host=(1 - device) * part, disk=(1 - device) * (1 - part))
    tiers = [tier for both in place_cache(num_layers, placement) for tier in both]
    for tier in Tier:
        # Half of a layer's keys: what cannot be had is less than 2 % from 25 layers on.
        assert tiers.count(tier) / len(tiers) == pytest.approx(
            placement.on(tier), abs=0.75 / num_layers
        )
