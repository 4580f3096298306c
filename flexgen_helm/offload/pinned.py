"""Memory of the host that a GPU can read and write by itself."""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections import defaultdict
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from flexgen_helm.errors import BudgetError
from flexgen_helm.offload.disk import PRIVATE, aligned_up, with_large_pages
from flexgen_helm.offload.part_file import ALIGNMENT

_PORTABLE = 1
"""Pinned for all devices."""


class PinnedPool:
    """Lends pinned memory, and keeps what comes back: to pin a gigabyte takes a sixth of a second.

    It never has more than was lent at some time; where that is not enough for what is wanted, it
    gives back what it has of other sizes first.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[_PinnedMemory]] = defaultdict(list)
        self._lock = threading.RLock()  # what comes back may be collected by whoever is in here
        self._free_bytes = self._lent_bytes = self._most_lent_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Pinned at present."""
        return self._free_bytes + self._lent_bytes

    def lend(self, num_bytes: int, *, zeros: bool = True) -> Tensor:
        """Return uint8, at least so many; they come back when no tensor has them any more.

        Args:
            num_bytes: how many.
            zeros: whether they have to be 0.

        Raises:
            BudgetError: the system does not let so much memory be pinned.
        """
        size = max(aligned_up(num_bytes), ALIGNMENT)
        with self._lock:
            memory = self._free[size].pop() if self._free[size] else None
            if memory is not None:
                self._free_bytes -= size
            self._lent_bytes += size
            self._most_lent_bytes = max(self._most_lent_bytes, self._lent_bytes)
            self._shrink()
        try:
            new = memory is None
            memory = memory or _PinnedMemory(size)
        except BudgetError:
            with self._lock:
                self._lent_bytes -= size
            raise
        numbers = np.frombuffer(memory, dtype=np.uint8)
        weakref.finalize(numbers, self._take_back, memory, size).atexit = False
        lent = torch.from_numpy(numbers)
        return lent.zero_() if zeros and not new else lent

    def _take_back(self, memory: _PinnedMemory, size: int) -> None:
        with self._lock:
            self._lent_bytes -= size
            self._free_bytes += size
            self._free[size].append(memory)

    def _shrink(self) -> None:
        """Give back the largest ones that are free, as long as there are too many bytes."""
        while self.num_bytes > self._most_lent_bytes:
            largest = max(size for size, free in self._free.items() if free)
            self._free[largest].pop()
            self._free_bytes -= largest


class _PinnedMemory(mmap.mmap):
    """Anonymous memory, pinned as long as there is any reference to it.

    Of its own, as PyTorch's allocator of pinned memory rounds up to powers of two.
    """

    def __new__(cls, num_bytes: int) -> _PinnedMemory:
        memory = super().__new__(cls, -1, num_bytes, **PRIVATE)
        with_large_pages(memory)
        # All threads provide pages here; CUDA would have one do it, four times as slowly.
        torch.frombuffer(memory, dtype=torch.uint8).zero_()
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        code = int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, _PORTABLE))
        if code:
            _forget_error()
            raise BudgetError(
                f"{num_bytes} bytes of the host's memory cannot be pinned (CUDA error {code}):"
                " allow less host memory, or put less of the model there"
            )
        memory._address = address
        return memory

    _address: int | None = None

    def __del__(self) -> None:
        if self._address is not None:
            with suppress(Exception):  # when the interpreter ends, CUDA may have ended before
                torch.cuda.cudart().cudaHostUnregister(self._address)


def _forget_error() -> None:
    """Let CUDA report its last error, which the next kernel would be blamed for, to nobody."""
    with suppress(Exception):
        torch.ones(1, device="cuda")
