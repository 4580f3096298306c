"""Pools of sequences in decode: how they are made, packed anew, and put into micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.pool import Decoding, Pool, most_positions_of
from flexgen_helm.specs.chunks import LEAST_FILLED, equal_share

POOL_READS = 1.5
"""What a pool costs per token beside its sequences, in times a sequence's cache is read."""


def make_pools(members: Iterable[Decoding], size: int, model: Model) -> list[Pool]:
    """Divide sequences into pools of at most `size`, of similar capacity each.

    Where there is a limit to what may be read at once, they are of similar size, too: what is ahead
    of its turn takes the memory of the largest.
    """
    pools: list[list[Decoding]] = []
    ordered = sorted(members, key=lambda member: (-member.capacity, member.order))
    most = most_positions_of(model)
    share = equal_share(sum(member.capacity for member in ordered), most)
    for member in ordered:
        longest, count = (pools[-1][0].capacity, len(pools[-1]) + 1) if pools else (0, 1)
        fit = count <= size and count * longest <= most and (count - 1) * longest < share
        if not pools or not fit or member.capacity < LEAST_FILLED * longest:
            pools.append([])
        pools[-1].append(member)
    return [Pool.make(pool, model) for pool in pools]


def repack(pools: Iterable[Pool], size: int) -> list[Pool]:
    """Drop empty pools, pack outgrown ones anew, and join those that are soon better together."""
    pools = [*pools]
    for pool in pools:
        if not pool.members:
            pool.cache.forget_reads()  # begun for a next token
    left = sorted((pool for pool in pools if pool.members), key=lambda pool: -pool.capacity)

    def merge(*merged: Pool) -> Pool:
        for pool in left:  # or it would be in memory beside what is packed
            pool.cache.forget_reads()
        return Pool.merge(merged)

    repacked: list[Pool] = []
    for pool in left:
        other = repacked[-1] if repacked else None
        if other is not None and _joins(other, pool, size):
            repacked[-1] = merge(other, pool)
        elif pool.outgrown:
            repacked.append(merge(pool))
        else:
            repacked.append(pool)
    return repacked


def group(pools: Sequence[Pool], size: int, *, at_once: bool) -> list[list[Pool]]:
    """Divide pools into micro-batches of at most `size` sequences, one pool at least.

    Args:
        pools: in any order.
        size: sequences.
        at_once: whether all keys, or values, of a micro-batch in a layer are read at once.
    """
    groups: list[list[Pool]] = []
    for pool in pools:
        if not groups or not _fit([*groups[-1], pool], size, at_once=at_once):
            groups.append([])
        groups[-1].append(pool)
    return groups


def _fit(pools: Sequence[Pool], size: int, *, at_once: bool = True) -> bool:
    """Whether pools may pass through a layer together."""
    if sum(len(pool.members) for pool in pools) > size:
        return False
    positions = sum(len(pool.members) * pool.capacity for pool in pools)
    return not at_once or positions <= pools[0].most_positions


def _joins(one: Pool, other: Pool, size: int) -> bool:
    """Whether two pools, the longer first, are joined: if that saves more than it costs."""
    saved_reads = POOL_READS * min(one.remaining_len, other.remaining_len)
    pays = saved_reads > one.copy_reads + other.copy_reads
    return _fit([one, other], size) and pays and other.capacity >= LEAST_FILLED * one.capacity
