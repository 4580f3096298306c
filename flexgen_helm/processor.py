"""What is known about the processor."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def cpu_model(cpu_info: Path = CPU_INFO) -> str:
    """Name of the CPU as Linux tells it, elsewhere as Python does."""
    text = cpu_info.read_text(encoding="utf-8") if cpu_info.is_file() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def num_cores() -> int | None:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
