"""What libraries keep in memory: the C library's allocator, and the kernels of oneDNN."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from flexgen_helm.specs.chunks import REUSED_BYTES

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_KEPT_BYTES = 512 << 20

_LOADED_BYTES = 1 << 20
"""Weights from this size on have pages of their own."""


_KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""PyTorch's and oneDNN's, which hold the same ones."""

_KERNEL_BYTES = 300_000
"""What each of their entries takes, as measured; a product has two for each number of rows."""

_LEAST_KERNELS, _MOST_KERNELS = 64, 1024
"""Eight numbers of rows with each matrix of a layer, and what libraries keep by themselves."""

_KERNEL_SHARE = 16
"""Kernels may take this part of what an engine may use."""


def keep_few_kernels(budget_bytes: int) -> None:
    """Let libraries keep no more kernels than a budget has room for.

    Without that they keep those of the last thousand shapes: 300 MB, as rows are of any number. To
    make one again takes less than a millisecond. What the environment says stays as it is, and
    where something was multiplied before, libraries do not ask any more.
    """
    room = budget_bytes // _KERNEL_SHARE // _KERNEL_BYTES
    capacity = max(_LEAST_KERNELS, min(_MOST_KERNELS, room))
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, str(capacity))


def reuse_freed_memory() -> None:
    """Have large blocks reused instead of given back to the system after every operation.

    glibc returns them at once, and the next operation gets fresh pages, each of which costs a fault
    and its zeroing: on two CPU cores that doubles the time of an activation function. Elsewhere
    than with glibc this does nothing.
    """
    if (library := _glibc()) is not None:
        library.mallopt(_M_MMAP_THRESHOLD, REUSED_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


@contextmanager
def loading_weights() -> Iterator[None]:
    """Have weights loaded into pages of their own, and give back what loading leaves behind.

    In the heap, they would lie among what was needed to load them. The holes that leaves are of
    other sizes than what is computed with them takes: the heap would grow beside them.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_M_MMAP_THRESHOLD, _LOADED_BYTES)
    try:
        yield
    finally:
        reuse_freed_memory()
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
