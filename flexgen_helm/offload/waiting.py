"""How long computing has stood still for what was on its way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
        self.so_far = Waited(0.0, 0.0)

    def for_disk(self) -> AbstractContextManager[None]:
        """Count what is done meanwhile as waiting for the disk."""
        return self._counted("disk_s")

    def for_link(self) -> AbstractContextManager[None]:
        """Count what is done meanwhile as waiting for weights being copied to the device."""
        return self._counted("link_s")

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            seconds = getattr(self.so_far, name) + time.perf_counter() - start_s
            self.so_far = self.so_far._replace(**{name: seconds})
