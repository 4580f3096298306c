"""Where the C library puts blocks of memory."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from flexgen_helm.runtime.allocator import keep_few_kernels, loading_weights, reuse_freed_memory

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


KERNELS = """
import sys
import torch
from flexgen_helm.runtime.allocator import keep_few_kernels
from flexgen_helm.runtime.statistics import memory_bytes
keep_few_kernels(int(sys.argv[1]))
weight, rows = torch.randn(3072, 768).bfloat16(), torch.randn(250, 768).bfloat16()
torch.nn.functional.linear(rows, weight)
before = memory_bytes(torch.device("cpu"))
for count in range(1, 250):
    torch.nn.functional.linear(rows[:count], weight)
print(memory_bytes(torch.device("cpu")) - before)
"""


def test_a_small_budget_is_not_taken_by_kernels(monkeypatch):
    """Of 250 shapes; where libraries keep none at all, both are small."""
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
    kept = []
    for budget in ("300000000", "100000000000"):
        command = [sys.executable, "-c", KERNELS, budget]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        kept.append(int(done.stdout))
    assert kept[0] < max(10_000_000, 0.7 * kept[1])


def test_what_the_environment_says_of_kernels_stays(monkeypatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    keep_few_kernels(2_400_000_000)
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY") == "500"
