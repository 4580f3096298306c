"""Where time and memory went."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

USABLE = 0.9
"""Of the memory that is free, what a plan may use where no budget says."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a pass over the weights cost, or a share of it."""

    seconds: float = 0.0
    disk_wait_s: float = 0.0
    """Of these, seconds in which nothing was computed for want of what was on disk."""

    link_wait_s: float = 0.0
    """Likewise, of what was on its way to the device."""

    to_device_bytes: float = 0.0
    """Copied from the host to the device meanwhile."""

    padding_rows: float = 0.0
    """Rows of matrix products with weights that held no token."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            seconds=self.seconds + other.seconds,
            disk_wait_s=self.disk_wait_s + other.disk_wait_s,
            link_wait_s=self.link_wait_s + other.link_wait_s,
            to_device_bytes=self.to_device_bytes + other.to_device_bytes,
            padding_rows=self.padding_rows + other.padding_rows,
        )

    def __mul__(self, factor: float) -> Cost:
        return Cost(
            seconds=self.seconds * factor,
            disk_wait_s=self.disk_wait_s * factor,
            link_wait_s=self.link_wait_s * factor,
            to_device_bytes=self.to_device_bytes * factor,
            padding_rows=self.padding_rows * factor,
        )

    def __truediv__(self, divisor: float) -> Cost:
        return self * (1 / divisor)


class Peak(NamedTuple):
    """Most bytes that were taken so far; see `Statistics`."""

    memory_bytes: int
    host_bytes: int | None
    disk_bytes: int


def peak_so_far(device: torch.device, *, disk_bytes: int) -> Peak:
    """Return that of every tier, with that of the disk as given."""
    memory = peak_memory_bytes(device)
    host = None if device.type == "cpu" else peak_memory_bytes(torch.device("cpu"))
    return Peak(memory_bytes=memory, host_bytes=host, disk_bytes=disk_bytes)


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory use so far: of the device on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # What `getrusage` says includes the peak of the process that started this one.
        return _kib_in(Path("/proc/self/status"), "VmHWM")
    except (OSError, ValueError):  # not Linux, or one that does not tell
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # others count in KiB


def memory_bytes(device: torch.device) -> int:
    """Memory in use now: of the device on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident_bytes()


def resident_bytes() -> int:
    """Memory of this process now; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory_bytes(torch.device("cpu"))
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the device on CUDA, else of this machine or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_available_bytes(), _cgroup_free_bytes())


def usable_bytes(device: torch.device, directory: Path) -> dict[str, Any]:
    """Return what a plan may use of device, host and disk, by the fields of `Hardware`."""
    while not directory.exists():
        directory = directory.parent
    free = {
        "device_bytes": free_memory_bytes(device),
        "host_bytes": free_memory_bytes(torch.device("cpu")),
        "disk_bytes": shutil.disk_usage(directory).free,
    }
    return {name: int(USABLE * size) for name, size in free.items()}


def _available_bytes() -> int:
    try:
        return _kib_in(Path("/proc/meminfo"), "MemAvailable")
    except OSError:  # not Linux: what was never used, which leaves out what could be reclaimed
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _kib_in(path: Path, name: str) -> int:
    """Return the bytes of a line like ``MemAvailable:  1234 kB``."""
    [line] = [x for x in path.read_text().splitlines() if x.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def _cgroup_free_bytes() -> int:
    """What the limit of a container leaves, of which `MemAvailable` knows nothing."""
    try:
        limit, used = (
            (Path("/sys/fs/cgroup") / name).read_text().strip()
            for name in ("memory.max", "memory.current")
        )
    except OSError:
        return sys.maxsize
    return sys.maxsize if limit == "max" else max(0, int(limit) - int(used))
