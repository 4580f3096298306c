"""What a process is said to have taken is its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from flexgen_helm.runtime.statistics import peak_memory_bytes, resident_bytes

LARGE = 1 << 30

PRINT_PEAK = """
import torch
from flexgen_helm.runtime.statistics import peak_memory_bytes
print(peak_memory_bytes(torch.device("cpu")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak may be that of the parent")
def test_a_peak_is_not_that_of_the_process_that_started_this_one() -> None:
    memory = torch.ones(LARGE, dtype=torch.uint8)
    done = subprocess.run(
        [sys.executable, "-c", PRINT_PEAK], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < memory.nbytes < peak_memory_bytes(torch.device("cpu"))


def test_a_peak_stays() -> None:
    device, size = torch.device("cpu"), 64 << 20
    before = resident_bytes()
    memory = torch.ones(size, dtype=torch.uint8)
    assert resident_bytes() >= before + size // 2
    del memory
    assert peak_memory_bytes(device) >= before + size // 2
