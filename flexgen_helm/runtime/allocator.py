"""The C library's allocator, told what a model's activations are like."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from flexgen_helm.specs.chunks import REUSED_BYTES

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_KEPT_BYTES = 512 << 20

_LOADED_BYTES = 1 << 20
"""Weights from this size on have pages of their own."""


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
