import pytest

from flexgen_helm.specs.chunks import (
    LEAST_SPILLED_AT_ONCE,
    MOST_SPILLED_AT_ONCE,
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
    assert spilled_at_once(cache_bytes, 24) == at_once
    assert Policy(cache_bytes=cache_bytes).spilled_at_once(24) == at_once
