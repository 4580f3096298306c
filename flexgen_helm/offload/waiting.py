"""How long computing has stood still for what was on its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Waited(NamedTuple):
    """Seconds, by what was waited for; what went on beside computing does not count."""

    disk_s: float
    """Reads, and writes the disk could not keep up with."""

    link_s: float
    """Copies to the device that it had to wait for."""


class Waiting:
    """Adds up the waits of whoever computes."""

    def __init__(self) -> None:
        self.so_far = Waited(0.0, 0.0)
        self._uncounted = threading.local()

    @contextmanager
    def for_disk(self, *, used: bool = True) -> Iterator[None]:
        """Count what is done meanwhile as waiting for the disk, if it is used for that."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            if used and not getattr(self._uncounted, "here", False):
                seconds = self.so_far.disk_s + time.perf_counter() - start_s
                self.so_far = self.so_far._replace(disk_s=seconds)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count nothing that this thread waits for meanwhile: others compute beside it."""
        self._uncounted.here = True
        try:
            yield
        finally:
            self._uncounted.here = False

    def add_link(self, seconds: float) -> None:
        """Count seconds in which the device waited for copies."""
        self.so_far = self.so_far._replace(link_s=self.so_far.link_s + seconds)
