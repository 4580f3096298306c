from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from flexgen_helm.model.cache_format import CacheFormat
from flexgen_helm.model.kv_cache import CachePool, KeysValues
from flexgen_helm.model.row_cells import RowCells
from flexgen_helm.runtime.pool import Decoding, Pool
from flexgen_helm.runtime.pool_packing import group, make_pools, repack
from flexgen_helm.specs.chunks import GROWTH
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.placement import Tier

CPU = torch.device("cpu")

SPEC = ModelSpec(
    num_layers=1,
    hidden_size=8,
    num_heads=2,
    ffn_size=8,
    vocab_size=9,
    max_positions=999,
    embedding_size=8,
)
MODEL = SimpleNamespace(
    spec=SPEC,
    cache_format=CacheFormat(spec=SPEC, compression=Compression(), dtype=torch.float32, device=CPU),
    indices=torch.as_tensor,
    attention_on_host=False,
)


def decoding(place, *, chain_len=10, new_tokens=5):
    return Decoding(
        sequence=SimpleNamespace(generated=[7], finished=False),
        job=None,
        order=(0, place),
        segments=(),
        shared_tokens=0,
        chain_len=chain_len,
        capacity=chain_len + new_tokens,
    )


def make_pool(places, **lengths):
    """A pool in which the key at position 0 of a sequence is its place."""
    pool = Pool.make([decoding(place, **lengths) for place in places], MODEL)
    for slot, member in enumerate(pool.members):
        row = torch.full((1, 8), float(member.order[1]))
        pool.cache.write(0, RowCells([0], [slot], [0], CPU), KeysValues(row, row))
    return pool


def places(pool):
    """Places of the members, and those that the cache says."""
    with pool.cache.read_keys(0) as keys:
        stored = [int(keys[slot, 0, 0, 0]) for slot in range(pool.cache.num_slots)]
    return [member.order[1] for member in pool.members], stored


def finish(pool, *which):
    for member in pool.members:
        member.sequence.finished |= member.order[1] in which
    return pool.drop_finished()


def test_pools_hold_sequences_of_similar_length_in_the_order_of_their_tree():
    members = [
        decoding(place, chain_len=length) for place, length in enumerate([95, 10, 99, 11, 90])
    ]
    pools = make_pools(members, 256, MODEL)
    assert [[member.order[1] for member in pool.members] for pool in pools] == [[0, 2, 4], [1, 3]]


def test_pools_are_no_larger_than_a_micro_batch():
    pools = make_pools([decoding(place) for place in range(7)], 3, MODEL)
    assert [len(pool.members) for pool in pools] == [3, 3, 1]


def test_pools_on_disk_are_no_larger_than_what_is_read_at_once(monkeypatch):
    tiers = [(Tier.DISK, Tier.DEVICE)]
    on_disk = SimpleNamespace(
        **{
            **vars(MODEL),
            "cache_format": replace(MODEL.cache_format, tiers=tiers),
            "spilled_at_once": 40 * 8 * 4,  # keys of 40 positions
        }
    )
    monkeypatch.setattr(CachePool, "__init__", lambda *_: None)
    pools = make_pools([decoding(place) for place in range(5)], 256, on_disk)
    assert [len(pool.members) for pool in pools] == [2, 2, 1], "of 15 positions each"
    long = make_pools([decoding(place, chain_len=90) for place in range(2)], 256, on_disk)
    assert [len(pool.members) for pool in long] == [1, 1], "one is read whatever its length"


def test_room_grows_with_the_sequences():
    [pool] = make_pools([decoding(0, new_tokens=500)], 4, MODEL)
    assert pool.cache.capacity == 10 + GROWTH
    assert pool.num_tokens == 510
    [member] = pool.members
    member.sequence.generated = [7] * (GROWTH + 1)
    assert pool.outgrown
    [grown] = repack([pool], 4)
    assert grown.cache.capacity == 10 + 2 * GROWTH
    assert places(grown) == ([0], [0])


@pytest.mark.parametrize(("new_tokens", "packed"), [(12, True), (11, False)])
def test_sequences_that_end_leave_and_the_rest_is_packed_when_it_pays(new_tokens, packed):
    """Three unused slots are read for every further token; copying the rest is 35 reads."""
    pool = make_pool(range(10), new_tokens=new_tokens)
    assert [member.order[1] for member in finish(pool, 3)] == [3]
    assert repack([pool], 256) == [pool]
    finish(pool, 0, 8)
    [after] = repack([pool], 256)
    assert (after is not pool) == packed
    left = [1, 2, 4, 5, 6, 7, 9]
    assert places(after) == (left, left if packed else list(range(10)))


def test_small_pools_are_joined_in_the_order_of_the_tree():
    one, other = make_pool([0, 3], new_tokens=14), make_pool([1, 2], new_tokens=14)
    [joined] = repack([one, other], 256)
    assert places(joined) == ([0, 1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("sizes", "new_tokens", "size"),
    [((3, 2), 14, 256), ((2, 2), 13, 256), ((2, 2), 14, 3)],
    ids=["much to copy", "little left to generate", "more than a micro-batch"],
)
def test_pools_that_stay_apart(sizes, new_tokens, size):
    """Four sequences are 20 reads to copy, five 25; fewer pools save 1.5 reads a token."""
    pools = [make_pool(range(count), new_tokens=new_tokens) for count in sizes]
    assert len(repack(pools, size)) == 2


def test_pools_of_different_lengths_stay_apart():
    assert len(repack([make_pool([0]), make_pool([1], chain_len=90)], 256)) == 2


def test_empty_pools_are_dropped():
    pool = make_pool([0])
    finish(pool, 0)
    assert repack([pool], 256) == []


@pytest.mark.parametrize(
    ("sizes", "most", "groups"),
    [
        ([], 99, []),
        ([5], 99, [[5]]),
        ([3, 1, 2], 99, [[3, 1], [2]]),
        ([9, 1], 99, [[9], [1]]),
        ([3, 1], 35, [[3], [1]]),
    ],
)
def test_micro_batches_are_filled_with_whole_pools(sizes, most, groups):
    pools = [
        SimpleNamespace(members=[None] * size, capacity=9, most_positions=most) for size in sizes
    ]
    made = group(pools, 4, at_once=True)
    assert [[len(pool.members) for pool in part] for part in made] == groups


def test_pools_read_one_by_one_are_in_one_micro_batch():
    pools = [SimpleNamespace(members=[None], capacity=9, most_positions=9) for _ in range(5)]
    assert [len(part) for part in group(pools, 4, at_once=False)] == [4, 1]
