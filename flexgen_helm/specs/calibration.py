"""Where the profile of this machine is, once it has been calibrated."""

from __future__ import annotations

import os
from pathlib import Path

from flexgen_helm.errors import HardwareError
from flexgen_helm.specs.hardware import Hardware, read_hardware

PROFILE_VARIABLE = "FLEXGEN_HELM_HARDWARE"
"""Names another file."""


def profile_path() -> Path:
    """Return where the profile of this machine is written, and looked for."""
    named = os.environ.get(PROFILE_VARIABLE)
    return Path(named) if named else Path("~/.cache/flexgen_helm/hardware.json").expanduser()


def measured_profile() -> Hardware:
    """Return the profile of this machine.

    Raises:
        HardwareError: it has not been calibrated.
    """
    path = profile_path()
    if not path.is_file():
        raise HardwareError(
            f"this machine has not been calibrated, {path} is not there: run flexgen-helm"
            " calibrate, or name a profile"
        )
    return read_hardware(path)
