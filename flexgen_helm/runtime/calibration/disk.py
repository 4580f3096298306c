"""Rates of the disk, and how much computing and reading are in each other's way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median

from torch import Tensor

from flexgen_helm.errors import StoreError
from flexgen_helm.offload.disk import (
    REQUEST_BYTES,
    REQUESTS_IN_FLIGHT,
    DirectFile,
    aligned_buffer,
)
from flexgen_helm.runtime.calibration.computing import Computing
from flexgen_helm.runtime.calibration.timing import Stopwatch, elapsed_s

FILE_BYTES = 64 * REQUEST_BYTES
"""512 MB are written to and read from disk."""

TURNS, TOGETHER_S = 2, 2.0
"""How often, and how long, computing and reading go on at the same time."""


def disk_rates(directory: Path, computing: Computing) -> dict[str, float]:
    """Return what the disk of a directory can do, and what computing takes of it.

    Raises:
        StoreError: it cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (
            closing(DirectFile.temporary(directory)) as file,
            ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as threads,
        ):
            file.allocate(0, FILE_BYTES)
            disk = _Disk(file, threads)
            written = [disk.write() for _ in range(2)][1]
            read = median(disk.read() for _ in range(3))
            contention = _contention(disk, computing)
    except OSError as error:
        raise StoreError(
            f"the disk of {directory} cannot be measured ({error}): free 1 GB there, or choose"
            " another offload directory"
        ) from error
    return {
        "disk_write_bytes_per_s": written,
        "disk_read_bytes_per_s": read,
        "contention": contention,
    }


class _Disk:
    """A file that is written and read in several large requests at once."""

    def __init__(self, file: DirectFile, threads: ThreadPoolExecutor) -> None:
        self._file, self._threads = file, threads
        self._buffers = [aligned_buffer(REQUEST_BYTES) for _ in range(2 * REQUESTS_IN_FLIGHT)]
        for buffer in self._buffers:
            buffer.random_()
        self._requests_read: list[int] = []
        """Bytes of each; threads can append to a list."""

    @property
    def bytes_read(self) -> int:
        return sum(self._requests_read)

    def write(self) -> float:
        """Return bytes a second."""
        return FILE_BYTES / self._all(self._file.store)

    def read(self) -> float:
        """Return bytes a second."""
        return FILE_BYTES / self._all(self._read)

    def read_until(self, stop: Callable[[], bool]) -> None:
        """Read again and again."""
        while not stop():
            self.read()

    def _read(self, buffer: Tensor, offset: int) -> None:
        self._file.fill(buffer, offset)
        self._requests_read.append(buffer.nbytes)

    def _all(self, transfer: Callable[[Tensor, int], None]) -> float:
        start_s, offsets = time.perf_counter(), range(0, FILE_BYTES, REQUEST_BYTES)
        # A buffer is used by two requests: what is read is not looked at.
        for _ in self._threads.map(transfer, cycle(self._buffers), offsets):
            pass
        return elapsed_s(start_s)


def _contention(disk: _Disk, computing: Computing) -> float:
    """Part of the shorter of computing and reading that takes time of its own beside the longer.

    Products are those of decode, which wants the disk most: like it, they wait for memory.
    """
    multiply = computing.decode_product()
    return median(_contention_once(disk, computing.stopwatch, multiply) for _ in range(TURNS))


def _contention_once(disk: _Disk, stopwatch: Stopwatch, multiply: Callable[[], Tensor]) -> float:
    alone_s, read_bytes_per_s = stopwatch.time(multiply), disk.read()
    with _reading(disk):
        start_s, start_bytes, products = time.perf_counter(), disk.bytes_read, 0
        while elapsed_s(start_s) < TOGETHER_S:
            multiply()
            stopwatch.synchronize()
            products += 1
        seconds, num_bytes = elapsed_s(start_s), disk.bytes_read - start_bytes
    parts = products * alone_s / seconds, num_bytes / read_bytes_per_s / seconds
    return min(1.0, max(0.0, (1 - max(parts)) / min(parts)))


@contextmanager
def _reading(disk: _Disk) -> Iterator[None]:
    """Read in the background."""
    stopped = False
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(disk.read_until, lambda: stopped)
        try:
            yield
        finally:
            stopped = True
        reading.result()
