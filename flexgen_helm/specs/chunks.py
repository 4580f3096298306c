"""How much is computed at once: what bounds the memory of intermediate results.

Here, and not where it is used, because what plans memory must know it, too.
"""

from math import ceil, isinf

CHUNK_SCORES = 4 << 20
"""Attention scores computed at once, 8 MB in bfloat16: their weights replace them while they are in
cache."""

HEAD_ROWS = 128
"""Positions that go through the LM head at once; on a CPU their logits should stay in its cache
between the passes over them."""

HEAD_COLUMNS = 1 << 13
"""Tokens of the vocabulary whose logits are computed at once."""

DEQUANTIZED_AT_ONCE = 1 << 19
"""Numbers dequantized at once: what is computed on the way takes several times their bytes, and
should stay in the CPU's cache."""

MOST_SPILLED_AT_ONCE = 32 << 20
"""Bytes of keys, or of values, of a layer that are read from disk at once, at most: enough for the
disk, and a few of them are in memory at a time."""

MOST_LINKED_AT_ONCE = 64 << 20
"""The same of what is brought to a device with memory of its own: enough for a copy to take longer
than it takes to tell the device what to do with it."""

LEAST_SPILLED_AT_ONCE = 4 << 20
"""With less the disk would not be busy."""

SPILLED_PARTS = 4
"""Reads that a small cache's keys, or values, of a layer are divided into: its buffers should not
be larger than itself."""

READS_IN_MEMORY = 6
"""Reads of keys and values that are in memory at once: those of a turn, which are two, and others
that were begun before their turn comes, enough for the disk to be busy while those computed on
take longer than theirs took to read."""

READS_BEHIND = 2
"""Reads whose use a device is given before it has come to its end: enough for it never to wait."""

LINKED_READS_IN_MEMORY = 2 * (READS_BEHIND + 2)
"""The same of a device's memory: keys and values of those, of the one that has come and of the next
one, whose copies are given to the link as long before."""

REUSED_BYTES = 32 << 20
"""Blocks of memory up to this size are used again on a CPU, and not given back to the system: the
largest value every glibc accepts; activations of a micro-batch mostly stay below."""

LOADS_IN_FLIGHT = 4
"""Keys, or values, of a layer that are brought to a GPU at once, where they come from the disk."""

STORES_IN_FLIGHT = 8
"""Keys, or values, of a micro-batch on their way to where the host keeps them."""

RUN_LEN = 16
"""Positions after prefill that are on disk one by one until they are put in order as a run: enough
for few runs, few enough to be put in order for every token. Products always have runs of this many:
libraries keep half a megabyte for every shape they have met."""

WRITES_IN_FLIGHT = 4
"""Buffers on their way to disk at once; together they are no more than one read, as a rule."""

GROWTH = 64
"""Tokens that sequences side by side have more room for in memory than they hold when they are
packed. All of that room is read for every token, so it does not begin with what the longest
completion might need."""

MIN_KEPT = 64
"""Tokens from which a prefix is kept for the next block; fewer are computed again."""

MOST_KEPT_BYTES = 128 << 20
"""Of the keys and values of such a prefix, as computed, and of what comes out of the last layer: a
model too large for a long one has blocks so large that to compute it again is little."""

LEAST_FILLED = 0.8
"""Sequences share a pool if the shortest needs at least this part of the longest one's capacity."""


def spilled_at_once(cache_bytes: int | None, num_layers: int, *, linked: bool) -> int:
    """Return the bytes of keys, or of values, of a layer that are read from elsewhere at once.

    Args:
        cache_bytes: of the whole KV cache, at most; `None` if it has no limit.
        num_layers: it is divided into.
        linked: whether to a device with memory of its own.
    """
    most = MOST_LINKED_AT_ONCE if linked else MOST_SPILLED_AT_ONCE
    if cache_bytes is None:
        return most
    part = cache_bytes // (2 * num_layers * SPILLED_PARTS)
    return min(most, max(LEAST_SPILLED_AT_ONCE, part))


def most_kept(hidden_size: int, num_layers: int, dtype_bytes: int) -> int:
    """Return the tokens of a prefix that are kept for the next block, at most."""
    return MOST_KEPT_BYTES // kept_bytes(hidden_size, num_layers, dtype_bytes)


def kept_bytes(hidden_size: int, num_layers: int, dtype_bytes: int) -> int:
    """Return what is kept of a token: keys, values, and what comes out of the last layer."""
    return (2 * num_layers + 1) * hidden_size * dtype_bytes


def equal_share(size: float, most: float) -> float:
    """Return the size of each of as few equal parts as possible, if none is larger than `most`."""
    return most if isinf(most) else size / max(1, ceil(size / most))


def spill_memory(
    at_once: int = MOST_SPILLED_AT_ONCE, largest: float | None = None, run: float = 0
) -> int:
    """Return the bytes of memory that reads of so many, and what is written, take together.

    Args:
        at_once: that are read at once, at most.
        largest: bytes of the largest read there is, if that is known. Of such there are six, or
            more that take half of what may be ahead, and as much as two in buffers that nobody uses
            at the moment.
        run: bytes of `RUN_LEN` positions of such a read, which are put in order in a buffer of up
            to twice the size, for keys and for values.
    """
    most = (READS_IN_MEMORY + 1) * at_once
    if largest is None:
        return most
    ahead = max(READS_IN_MEMORY * largest, READS_IN_MEMORY * at_once / 2)
    return min(most, round(ahead + 2 * largest + 4 * run))
