"""What engines with everything in its place are compared with."""

import pytest

from flexgen_helm import Policy


@pytest.fixture(scope="module", params=["none", "w4-kv4"])
def label(request):
    """Of a compression."""
    return request.param


@pytest.fixture(scope="module")
def expected(label, checkpoint):
    """What an engine gives that has everything on the device."""
    from tests.runtime.test_offloading import run

    return run(checkpoint, label, Policy())
