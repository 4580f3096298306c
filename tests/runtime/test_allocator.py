"""Where the C library puts blocks of memory."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from flexgen_helm.runtime.allocator import loading_weights, reuse_freed_memory

BLOCK_BYTES = 2 << 20
MORE_THAN_IS_FREE = 400
"""Blocks; none is written, so they take addresses alone."""


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _blocks_in_own_pages() -> int:
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _MallocInfo
    return int(library.mallinfo2().hblks)


def _allocate() -> list[torch.Tensor]:
    return [torch.empty(BLOCK_BYTES, dtype=torch.uint8) for _ in range(MORE_THAN_IS_FREE)]


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="needs a glibc that tells where blocks are",
)
def test_only_what_is_loaded_has_pages_of_its_own() -> None:
    reuse_freed_memory()
    before = _blocks_in_own_pages()
    computed = _allocate()
    assert _blocks_in_own_pages() == before
    with loading_weights():
        loaded = _allocate()
    with_loaded = _blocks_in_own_pages()
    assert with_loaded > before
    computed += _allocate()
    assert _blocks_in_own_pages() == with_loaded
    assert len(computed) == 2 * len(loaded), "all of them are still there"
