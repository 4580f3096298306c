"""Reading files into memory past the page cache, several requests in flight.

What is read once a pass has no use for the page cache: it would only push out what has, and copy
everything once more. Where a file system knows no direct reads, pages are dropped after use.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from flexgen_helm.errors import StoreError
from flexgen_helm.offload.part_file import ALIGNMENT

REQUEST_BYTES = 8 << 20
"""Bytes of one request: enough for the disk to be busy, few enough to have several in flight."""

REQUESTS_IN_FLIGHT = 4


PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Memory of this process alone; what could be shared has no large pages, as a rule."""


def aligned_down(offset: int) -> int:
    """Return the last multiple of `ALIGNMENT` up to an offset."""
    return offset // ALIGNMENT * ALIGNMENT


def aligned_up(offset: int) -> int:
    """Return the first multiple of `ALIGNMENT` from an offset on."""
    return aligned_down(offset + ALIGNMENT - 1)


def aligned_buffer(num_bytes: int) -> Tensor:
    """Return memory for direct reads, uint8, of at least so many bytes."""
    # Anonymous pages begin at multiples of the page size, which `ALIGNMENT` divides.
    memory = mmap.mmap(-1, max(aligned_up(num_bytes), ALIGNMENT), **PRIVATE)
    with_large_pages(memory)
    return torch.frombuffer(memory, dtype=torch.uint8)


def with_large_pages(memory: mmap.mmap) -> None:
    """Ask for large pages: to provide and to pin small ones takes longer than to read."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)


class DiskReader:
    """Reads parts of files in threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="disk-read")

    def read(self, path: Path, offset: int, buffer: Tensor) -> list[Future[None]]:
        """Begin to fill a buffer from a file; done when all futures are.

        Args:
            path: the file.
            offset: where to begin, a multiple of `ALIGNMENT`.
            buffer: part of one made by `aligned_buffer`, beginning at such a multiple, too. What
                lies behind the end of the file is left as it is.

        Raises:
            StoreError: from a future, where the file cannot be read.
        """
        assert offset % ALIGNMENT == 0
        assert buffer.data_ptr() % ALIGNMENT == 0
        starts = range(0, len(buffer), REQUEST_BYTES)
        return [
            self._threads.submit(_read, path, offset + start, buffer[start : start + REQUEST_BYTES])
            for start in starts
        ]

    def close(self) -> None:
        """Wait for reads under way, and end the threads."""
        self._threads.shutdown(cancel_futures=True)


class DirectFile:
    """A file open for reads and writes past the page cache, if its file system has them.

    Buffers begin at multiples of `ALIGNMENT`, and so do the places in the file where they go.
    """

    def __init__(self, path: Path, *, flags: int = os.O_RDONLY) -> None:
        try:
            self._file, self._direct = os.open(path, flags | getattr(os, "O_DIRECT", 0)), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file, self._direct = os.open(path, flags), False

    @classmethod
    def temporary(cls, directory: Path) -> DirectFile:
        """Make one without a name: it is gone when it is closed, however the process ends."""
        handle, name = tempfile.mkstemp(dir=directory, prefix="spill-")
        os.close(handle)
        try:
            return cls(Path(name), flags=os.O_RDWR)
        finally:
            Path(name).unlink()

    def allocate(self, offset: int, num_bytes: int) -> None:
        """Have the file system set room aside, where it can.

        A write into a hole of a file waits for all reads of it, and holds up those that come after.

        Raises:
            OSError: the disk has no such room.
        """
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file, offset, num_bytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise

    def fill(self, buffer: Tensor, offset: int) -> None:
        """Read into a buffer; what lies behind the end of the file is left as it is."""
        memory = buffer.numpy().data
        while memory and (count := os.preadv(self._file, [memory], offset)):
            memory, offset = memory[count:], offset + count
            if count % ALIGNMENT:  # the end of the file
                break
        self._forget_pages()

    def store(self, buffer: Tensor, offset: int) -> None:
        """Write a buffer, whose length is a multiple of `ALIGNMENT`, too."""
        memory = buffer.numpy().data
        while memory:
            count = os.pwritev(self._file, [memory], offset)
            memory, offset = memory[count:], offset + count
        self._forget_pages()

    def close(self) -> None:
        os.close(self._file)

    def _forget_pages(self) -> None:
        if not self._direct:
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path, offset: int, buffer: Tensor) -> None:
    try:
        with closing(DirectFile(path)) as file:
            file.fill(buffer, offset)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read ({error}): check the disk, or convert the checkpoint again"
        ) from error
