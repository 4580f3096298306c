"""Where the data that ships beside the package is: scenarios, their lengths, hardware."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from flexgen_helm.specs.hardware import Hardware, read_hardware

_PLACES = (
    Path(__file__).parent.parent.parent / "scenarios",  # in a checkout
    Path(sys.prefix) / "share" / "flexgen_helm" / "scenarios",  # where pip puts it
)

UNKNOWN_GPU = "rtx-3090"
"""Whose figures are taken for a GPU without a profile."""


def scenarios_dir() -> Path:
    """Return the directory; one that does not exist where it was not installed."""
    return next((place for place in _PLACES if place.is_dir()), _PLACES[0])


def hardware_profiles() -> dict[str, Path]:
    """Return the hardware profiles that ship, by name."""
    files = sorted((scenarios_dir() / "hardware").glob("*.json"))
    return {file.stem: file for file in files}


def flexgen_paper() -> dict[str, Any]:
    """Return the FlexGen paper's tables: ``throughput``, and ``helm`` with its model and rows."""
    paper: dict[str, Any] = json.loads((scenarios_dir() / "flexgen_paper.json").read_text())
    return paper


def typical_hardware(*, unified: bool, dtype: str, device_name: str = "") -> Hardware:
    """Return figures to go by on a machine that has not been calibrated.

    Args:
        unified: whether it has no GPU.
        dtype: what it computes in. Processors that cannot compute in 16 bits are slower by far.
        device_name: of the GPU, as CUDA has it; one without a profile is taken for another.

    Raises:
        HardwareError: no profiles were installed.
    """
    profiles = hardware_profiles()
    if unified:
        name = "cpu-2-cores-float32" if dtype == "float32" else "cpu-2-cores"
    else:
        words = set(re.findall(r"\w+", device_name.lower()))
        name = next((n for n in profiles if words.issuperset(n.split("-"))), UNKNOWN_GPU)
    return read_hardware(profiles.get(name, Path(f"{name}.json")))
