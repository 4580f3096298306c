"""Noticing that memory is short although it was planned."""

from __future__ import annotations

import errno

import torch

from flexgen_helm.errors import BudgetError, DiskFullError
from flexgen_helm.runtime.statistics import peak_memory_bytes

NOTICEABLE = 1.01
"""By what a peak must exceed the one before to be another."""


class MemoryWatch:
    """Notices when more memory is used than is allowed.

    Only peaks count that come after it was made, as no system forgets those before.

    Args:
        device: what computes.
        allowed_bytes: of the device on CUDA, else of the process.
    """

    def __init__(self, device: torch.device, allowed_bytes: int) -> None:
        self._device = device
        self._allowed_bytes = allowed_bytes
        self._noticed_bytes = max(allowed_bytes, peak_memory_bytes(device))

    def new_excess(self) -> int:
        """Return by how many bytes a new peak is more than allowed; 0 where there is none."""
        peak = peak_memory_bytes(self._device)
        if peak <= NOTICEABLE * self._noticed_bytes:
            return 0
        self._noticed_bytes = peak
        return peak - self._allowed_bytes


def is_out_of_memory(error: Exception) -> bool:
    """Whether less at a time might do: memory, or the disk for what is spilled, was full."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, DiskFullError, BudgetError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # Torch has no type of its own for the CPU's memory.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
