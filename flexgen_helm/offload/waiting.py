"""How long computing has stood still for what was on its way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Waited(NamedTuple):
    """Seconds, by what was waited for; what went on beside computing does not count."""

    disk_s: float
    """Reads, and writes the disk could not keep up with."""

    link_s: float
    """Weights being copied to the device, with what it had to finish first."""


class Waiting:
    """Adds up the waits of whoever computes."""

    def __init__(self) -> None:
        self._disk_s = 0.0
        self._link_s = 0.0

    @property
    def so_far(self) -> Waited:
        return Waited(self._disk_s, self._link_s)

    @contextmanager
    def for_disk(self) -> Iterator[None]:
        """Count what is done meanwhile as waiting for the disk."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._disk_s += time.perf_counter() - start_s

    @contextmanager
    def for_link(self) -> Iterator[None]:
        """Count what is done meanwhile as waiting for weights being copied to the device."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._link_s += time.perf_counter() - start_s
