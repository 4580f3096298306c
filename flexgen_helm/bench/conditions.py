"""The machine and the software a benchmark ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path

from flexgen_helm.bench.report import Cell
from flexgen_helm.processor import cpu_model, num_cores

DISTRIBUTIONS = ("flexgen_helm", "torch", "transformers", "crfm-helm")
"""Packages whose versions move the figures; one that is not installed is reported as such."""

CHECKOUT = Path(__file__).resolve().parents[2]


def machine_conditions(now: datetime) -> dict[str, Cell]:
    """Describe where and when a benchmark runs.

    Args:
        now: the time to report, with its time zone.
    """
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(CHECKOUT),
        "cpu": cpu_model(),
        "cores": num_cores(),
        "memory_bytes": _memory_bytes(),
        "load_average": _load_average(),
        "os": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in DISTRIBUTIONS},
    }


def version(distribution: str) -> str | None:
    """Version of an installed distribution; `None` without it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def commit(directory: Path) -> str | None:
    """Return the commit checked out in `directory`, marked ``-dirty`` where files differ from it.

    `None` outside of a checkout, as in an installed package.
    """
    described = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--exclude=*"]
    if not (directory / ".git").exists():
        return None
    try:
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not ours to read
        return None


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load_average() -> float:
    """Processes that wanted a core in the last minute: how quiet the machine was."""
    return round(os.getloadavg()[0], 2)
