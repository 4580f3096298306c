import pytest

from flexgen_helm.specs.chunks import (
    LEAST_SPILLED_AT_ONCE,
    MOST_LINKED_AT_ONCE,
    MOST_SPILLED_AT_ONCE,
    WRITES_IN_FLIGHT,
    spill_memory,
    spilled_at_once,
)
from flexgen_helm.specs.policy import Policy

MB = 1 << 20


@pytest.mark.parametrize(
    ("cache_bytes", "at_once"),
    [
        (None, MOST_SPILLED_AT_ONCE),
        (2 * 24 * 4 * 8 * MB, 8 * MB),  # a quarter of the 32 MB of keys of each of 24 layers
        (100 * MB, LEAST_SPILLED_AT_ONCE),
        (1 << 40, MOST_SPILLED_AT_ONCE),
    ],
)
def test_a_small_cache_is_read_in_small_parts(cache_bytes, at_once):
    assert spilled_at_once(cache_bytes, 24, linked=False) == at_once
    assert Policy(cache_bytes=cache_bytes).spilled_at_once(24, linked=False) == at_once


def test_more_is_brought_to_a_device_at_once():
    assert spilled_at_once(None, 24, linked=True) == MOST_LINKED_AT_ONCE
    assert spilled_at_once(2 * 24 * 4 * 8 * MB, 24, linked=True) == 8 * MB


def test_small_reads_take_half_of_the_memory_for_large_ones():
    assert spill_memory(100, 90) == spill_memory(100) == 700
    assert spill_memory(100, 60, 20) == (6 + 2) * 60 + 2 * 2 * 20
    assert spill_memory(100, 10, 2) == 6 * 100 // 2 + 2 * 10 + 2 * 2 * 2


def test_a_pool_that_is_packed_anew_takes_no_more_than_reads_do():
    """As it was read, in order, where it goes, and what is on its way to disk."""
    assert spill_memory(100) >= (3 + WRITES_IN_FLIGHT) * 100
