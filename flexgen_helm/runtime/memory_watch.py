"""Noticing that memory is short although it was planned."""

from __future__ import annotations

import errno

import torch

from flexgen_helm.errors import BudgetError, DiskFullError
from flexgen_helm.runtime.statistics import peak_memory_bytes

NOTICEABLE = 0.05
"""By what part of a budget it must be exceeded. Less is not worth it: smaller micro-batches are
slower, and bring kernels of their own, which take memory, too."""


class MemoryWatch:
    """Notices when more memory is used than is allowed.

    Only peaks count that come after it was made, as no system forgets those before. After one that
    was noticed only twice the excess is: whatever was done about it has not helped before.

    Args:
        device: what computes.
        before_bytes: of the device on CUDA, else of the process, before there was a model.
        budget_bytes: what may be used beside them.
    """

    def __init__(self, device: torch.device, before_bytes: int, budget_bytes: int) -> None:
        self._device = device
        self._allowed_bytes = before_bytes + budget_bytes
        least = round(NOTICEABLE * budget_bytes)
        self._noticed_bytes = max(self._allowed_bytes + least, peak_memory_bytes(device))

    def new_excess(self) -> int:
        """Return by how many bytes a new peak is more than allowed; 0 where there is none."""
        peak = peak_memory_bytes(self._device)
        if peak <= self._noticed_bytes:
            return 0
        excess = peak - self._allowed_bytes
        self._noticed_bytes = self._allowed_bytes + 2 * excess
        return excess


def is_out_of_memory(error: Exception) -> bool:
    """Whether less at a time might do: memory, or the disk for what is spilled, was full."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, DiskFullError, BudgetError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # Torch has no type of its own for the CPU's memory.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
