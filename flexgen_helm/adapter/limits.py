"""What a user allows for all deployments that do not say it themselves.

HELM makes the clients, from what is written about a deployment; what is said on the command line
reaches them through the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from flexgen_helm.specs.budget import MemoryBudget

MEMORY_VARIABLES = {
    "device": "FLEXGEN_HELM_DEVICE_MEMORY",
    "host": "FLEXGEN_HELM_HOST_MEMORY",
    "disk": "FLEXGEN_HELM_DISK_MEMORY",
}
"""By tier, a size such as ``16GB``."""

OFFLOAD_VARIABLE = "FLEXGEN_HELM_OFFLOAD_DIR"


def set_limits(sizes: Mapping[str, str | None], offload_dir: str | None) -> None:
    """Set what is allowed from now on; `None` leaves it as it is.

    Raises:
        InvalidSettingError: a size is not understood.
    """
    given = {tier: size for tier, size in sizes.items() if size is not None}
    MemoryBudget.from_settings(given)
    os.environ.update({MEMORY_VARIABLES[tier]: size for tier, size in given.items()})
    if offload_dir is not None:
        os.environ[OFFLOAD_VARIABLE] = offload_dir


def default_budget() -> MemoryBudget:
    """Return the memory that is allowed.

    Raises:
        InvalidSettingError: a size is not understood.
    """
    return MemoryBudget.from_settings(
        {tier: os.environ.get(variable) for tier, variable in MEMORY_VARIABLES.items()}
    )


def default_offload_dir() -> str | None:
    """Return where weight stores and spilled tensors are to be, if anybody has said."""
    return os.environ.get(OFFLOAD_VARIABLE)
