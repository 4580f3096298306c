"""Memory that is read into and written from, and used again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from torch import Tensor

from flexgen_helm.offload.disk import aligned_buffer


class Buffers:
    """Aligned memory that is used again. Safe to use from threads.

    Memory that the system has to provide anew is slow: what has been used makes place for what is
    read next.

    Args:
        most_bytes: of all buffers; with more in use, none are kept that nobody uses.
        make: makes another one.
    """

    def __init__(
        self,
        most_bytes: int,
        make: Callable[[int], Tensor] = aligned_buffer,
    ) -> None:
        self._most_bytes = most_bytes
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[Tensor] = []
        # Who fails in between may never give a buffer back: it is gone when nobody refers to it.
        self._used: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()

    def take(self, num_bytes: int) -> Tensor:
        """Return a buffer of at least so many bytes, and at most twice as many."""
        with self._lock:
            fitting = [
                (buffer.nbytes, index)
                for index, buffer in enumerate(self._idle)
                if num_bytes <= buffer.nbytes <= 2 * num_bytes
            ]
            if fitting:
                buffer = self._idle.pop(min(fitting)[1])
            else:
                self._forget_beyond(self._most_bytes - num_bytes)
                buffer = self._make(num_bytes)
            self._used[id(buffer)] = buffer
            return buffer

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back that nobody reads any more."""
        with self._lock:
            self._used.pop(id(buffer), None)
            self._idle.append(buffer)
            self._forget_beyond(self._most_bytes)

    def _forget_beyond(self, most_bytes: int) -> None:
        """Forget those idle for longest, until all together have so many bytes."""
        num_bytes = sum(buffer.nbytes for buffer in (*self._used.values(), *self._idle))
        while self._idle and num_bytes > most_bytes:
            num_bytes -= self._idle.pop(0).nbytes
