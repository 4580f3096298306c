"""A read from host or disk to a device with memory of its own, begun before it is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from flexgen_helm.offload.link import Link

T = TypeVar("T")


class LinkedRead(Generic[T]):
    """Begun once, ahead if the link may bring anything ahead, until it is taken.

    Whoever reads says each time how to begin: if that were kept here, both would hold each other,
    and pinned memory until the garbage collector comes.

    Args:
        link: what is read passes.
        num_bytes: of the device's memory that this takes.
    """

    def __init__(self, link: Link, num_bytes: int) -> None:
        self._link, self._num_bytes = link, num_bytes
        self._begun: T | None = None

    @property
    def begun(self) -> bool:
        """Whether it is on its way."""
        return self._begun is not None

    def begin(self, begin: Callable[[], T]) -> int:
        """Begin it ahead, unless it has begun; return the bytes of memory this takes."""
        if not self._link.overlap:
            return 0
        if self._begun is None:
            self._begun = begin()
        return self._num_bytes

    def take(self, begin: Callable[[], T]) -> T:
        """Return what was begun; begin it if nothing was."""
        begun, self._begun = self._begun, None
        return begin() if begun is None else begun
