"""What engines with everything in its place are compared with, and CUDA devices for them."""

import pytest
import torch

from flexgen_helm import Policy
from tests.conftest import NEEDS_GPU
from tests.simulated_card.card import Card
from tests.simulated_card.cuda import installed

HAS_GPU = torch.cuda.is_available()
GPU = pytest.param("gpu", marks=pytest.mark.skipif(not HAS_GPU, reason=NEEDS_GPU), id="gpu")
SIMULATED = pytest.param(
    "simulated", marks=pytest.mark.skipif(HAS_GPU, reason="a real GPU is here"), id="simulated"
)


@pytest.fixture(params=[SIMULATED, GPU])
def cuda(request, monkeypatch):
    """A CUDA device: one that the processor simulates and checks, which is returned, or a real one.

    What a simulated one finds wrong fails the test.
    """
    if request.param == "gpu":
        yield None
        return
    card = Card()
    with installed(card, monkeypatch):
        yield card
    assert not card.findings, "\n".join(card.findings)


@pytest.fixture(scope="module", params=["none", "w4-kv4"])
def label(request):
    """Of a compression."""
    return request.param


@pytest.fixture(scope="module")
def expected(label, checkpoint):
    """What an engine gives that has everything on the device."""
    from tests.runtime.test_offloading import run

    return run(checkpoint, label, Policy())
