"""How much is computed at once: what bounds the memory of intermediate results.

Here, and not where it is used, because what plans memory must know it, too.
"""

CHUNK_SCORES = 4 << 20
"""Attention scores computed at once, 8 MB in bfloat16: their weights replace them while they are in
cache."""

HEAD_ROWS = 128
"""Positions that go through the LM head at once; on a CPU their logits should stay in its cache
between the passes over them."""

HEAD_COLUMNS = 1 << 13
"""Tokens of the vocabulary whose logits are computed at once."""

DEQUANTIZED_AT_ONCE = 1 << 20
"""Numbers dequantized at once: what is computed on the way takes several times their bytes, and
should stay in the CPU's cache."""

SPILLED_AT_ONCE = 32 << 20
"""Bytes of keys, or of values, of a layer that are read from disk at once: enough for the disk, and
a few of them are in memory at a time."""

IDLE_BYTES = 2 * SPILLED_AT_ONCE
"""Bytes of buffers for the disk that are kept for the next who needs one, as memory the system has
to provide anew is slow: keys and values that have been used make place for those read next."""

READ_AHEAD_BYTES = 3 * SPILLED_AT_ONCE
"""Bytes of keys and values that are read before their turn comes, beyond those of the next turn:
enough for the disk to be busy while those computed on take longer than theirs took to read."""

WRITES_IN_FLIGHT = 4
"""Buffers on their way to disk at once."""

LEAST_FILLED = 0.8
"""Sequences share a pool if the shortest needs at least this part of the longest one's capacity."""
