"""Figures to go by on machines that have not been calibrated."""

import pytest

from flexgen_helm.specs.shipped import typical_hardware


@pytest.mark.parametrize(
    ("device_name", "profile"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA T400 4GB", "rtx-3090"),
        ("", "rtx-3090"),
    ],
)
def test_a_card_goes_by_its_own_figures_if_there_are_any(device_name, profile):
    found = typical_hardware(unified=False, dtype="float16", device_name=device_name)
    assert (found.name, found.unified) == (profile, False)


@pytest.mark.parametrize(
    ("dtype", "profile"), [("float32", "cpu-2-cores-float32"), ("bfloat16", "cpu-2-cores")]
)
def test_a_processor_goes_by_its_dtype(dtype, profile):
    found = typical_hardware(unified=True, dtype=dtype)
    assert (found.name, found.unified) == (profile, True)
