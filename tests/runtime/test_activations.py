import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexgen_helm.offload.spill import Spill
from flexgen_helm.offload.stored_tensors import InMemory
from flexgen_helm.runtime.activations import Activations
from flexgen_helm.specs.placement import Placement


@pytest.fixture
def spill(tmp_path):
    spill = Spill(tmp_path)
    yield spill
    spill.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    device=st.floats(0, 1),
    part=st.floats(0, 1),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
)
def test_what_was_put_is_taken(spill, device, part, sizes):
    placement = Placement(device=device, host=(1 - device) * part, disk=(1 - device) * (1 - part))
    activations = Activations(placement, spill)
    hidden = [torch.randn(size, 24) for size in sizes]
    for index, rows in enumerate(hidden):
        activations.put(index, rows)
    for index, rows in enumerate(hidden):
        activations.begin_take(index)
        assert torch.equal(activations.take(index), rows)


def test_fractions_are_of_the_rows(spill):
    activations = Activations(Placement(device=0.25, host=0.25, disk=0.5), spill)
    activations.put(0, torch.zeros(4096, 256))
    assert spill.num_bytes == 4096 * 256 * 4 // 2
    in_memory = [
        rows
        for stored in activations._kept[0]
        if isinstance(stored, InMemory)
        for rows in stored.read()
    ]
    assert sum(rows.nbytes for rows in in_memory) == 4096 * 256 * 4 // 2
    assert all(rows.untyped_storage().nbytes() == rows.nbytes for rows in in_memory), (
        "none of them holds on to the whole"
    )


def test_what_is_on_the_device_is_not_copied():
    hidden = torch.zeros(5, 3)
    activations = Activations(Placement(device=1), None)
    activations.put(7, hidden)
    assert activations.take(7) is hidden
