"""Memory on disk for what a run makes and reads again: KV cache and activations.

All of it is in one file without a name, which is gone when the process is. Threads read and write
it while the caller computes; a region is written only at its end, where its last records can be
replaced by one, and read as a whole.
"""

from __future__ import annotations

import bisect
import errno
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from flexgen_helm.errors import DiskFullError, StoreError
from flexgen_helm.offload.buffers import Buffers
from flexgen_helm.offload.disk import (
    REQUEST_BYTES,
    REQUESTS_IN_FLIGHT,
    DirectFile,
    aligned_buffer,
    aligned_up,
)
from flexgen_helm.offload.records import RecordLayout, Records
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.specs.chunks import WRITES_IN_FLIGHT, spill_memory


class Freed(NamedTuple):
    """Bytes of a region that is no more."""

    writes: list[Future[None]]
    """What may still be under way, and must not meet what the next owner writes there."""

    offset: int
    num_bytes: int


class Spill:
    """A file that grows as it must, and what reads and writes it.

    Args:
        directory: where the file is.
        overlap: whether reads ahead and writes go on while the caller computes.
        limit_bytes: what may be on disk at a time; `None` for whatever the disk holds.
        memory_bytes: of buffers in memory, beyond which none are kept that nobody uses.
        waiting: told of waits for the disk.
        make_buffer: makes memory that is read into and written from.
    """

    def __init__(
        self,
        directory: Path,
        *,
        overlap: bool = True,
        limit_bytes: int | None = None,
        memory_bytes: int | None = None,
        waiting: Waiting | None = None,
        make_buffer: Callable[[int], Tensor] = aligned_buffer,
    ) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = DirectFile.temporary(directory)
        except OSError as error:
            raise StoreError(
                f"no file can be made in {directory} ({error}): choose another offload directory"
            ) from error
        self._directory = directory
        self._limit_bytes = limit_bytes
        # Each has its own: who waits for a write should not wait for all that is read ahead.
        self._readers = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="spill-read")
        self._writers = ThreadPoolExecutor(WRITES_IN_FLIGHT, thread_name_prefix="spill-write")
        self._writes = threading.Semaphore(WRITES_IN_FLIGHT)
        self._lock = threading.Lock()
        self._gaps: list[tuple[int, int]] = []
        self._end = 0
        self._num_bytes = 0
        self.freed: deque[Freed] = deque()
        """What nobody refers to any more. The garbage collector frees regions wherever it runs, in
        here, too, so that it may neither wait nor lock anything."""
        self.overlap = overlap
        self.waiting = waiting or Waiting()
        self.buffers = Buffers(memory_bytes or spill_memory(), make_buffer)
        self.peak_bytes = 0
        """The most bytes that were in use at once."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all regions in use."""
        with self._lock:
            self._take_back()
            return self._num_bytes

    def region(self, num_bytes: int) -> SpillRegion:
        """Reserve so many bytes; they are free again when the region is not referred to any more.

        Raises:
            DiskFullError: this would be more than may be on disk.
        """
        return SpillRegion(self, self._reserve(aligned_up(num_bytes)), aligned_up(num_bytes))

    def close(self) -> None:
        """Wait for what is under way, and give back disk and memory."""
        self._readers.shutdown()
        self._writers.shutdown()
        self._file.close()

    def begin_read(self, buffer: Tensor, offset: int) -> list[Future[None]]:
        """Begin to fill a buffer, in requests of `REQUEST_BYTES`."""
        return [
            self._readers.submit(
                self._file.fill, buffer[start : start + REQUEST_BYTES], offset + start
            )
            for start in range(0, len(buffer), REQUEST_BYTES)
        ]

    def begin_write(self, buffer: Tensor, num_bytes: int, offset: int) -> Future[None]:
        """Begin to write the beginning of a buffer, which is taken back afterwards."""
        with self.waiting.for_disk():  # whoever computes faster than the disk writes
            self._writes.acquire()
        return self._writers.submit(self._write, buffer, num_bytes, offset)

    def explain(self, error: OSError) -> StoreError:
        """Say what to do about an error of the disk."""
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
        return kind(
            f"the spill file in {self._directory} cannot be used ({error}), {self._num_bytes} bytes"
            " of it are in use: free space there, or choose another offload directory"
        )

    def _write(self, buffer: Tensor, num_bytes: int, offset: int) -> None:
        try:
            self._file.store(buffer[:num_bytes], offset)
        finally:
            self._writes.release()
            self.buffers.give(buffer)

    def _reserve(self, num_bytes: int) -> int:
        with self._lock:
            self._take_back()
            needed = self._num_bytes + num_bytes
            if self._limit_bytes is not None and needed > self._limit_bytes:
                raise DiskFullError(
                    f"{needed} bytes are needed on disk, {self._limit_bytes} are allowed: allow"
                    " more, or use smaller micro-batches"
                )
            offset = self._place(num_bytes)
            self._num_bytes = needed
            self.peak_bytes = max(self.peak_bytes, needed)
            return offset

    def _place(self, num_bytes: int) -> int:
        """Return where there is room."""
        for index, (offset, size) in enumerate(self._gaps):
            if size >= num_bytes:
                rest = [(offset + num_bytes, size - num_bytes)] if size > num_bytes else []
                self._gaps[index : index + 1] = rest
                return offset
        try:
            self._file.allocate(self._end, num_bytes)
        except OSError as error:
            raise self.explain(error) from error
        offset, self._end = self._end, self._end + num_bytes
        return offset

    def _take_back(self) -> None:
        """Make gaps of what was freed, once nothing is being written there."""
        while self.freed:
            writes, offset, num_bytes = self.freed.popleft()
            wait(writes)
            self._num_bytes -= num_bytes
            bisect.insort(self._gaps, (offset, num_bytes))
            self._gaps = _joined(self._gaps)


class SpillRegion:
    """Consecutive bytes of a spill: records, appended one by one, read all at once."""

    def __init__(self, spill: Spill, offset: int, num_bytes: int) -> None:
        self._spill = spill
        self._offset = offset
        self._capacity = num_bytes
        self._layouts: list[RecordLayout] = []
        self._writes: list[Future[None]] = []
        self._ahead: tuple[Tensor, list[Future[None]]] | None = None
        self.num_bytes = 0
        """Bytes written."""
        freed = Freed(self._writes, offset, num_bytes)
        weakref.finalize(self, spill.freed.append, freed).atexit = False

    def append(self, layout: RecordLayout, record: Tensor) -> None:
        """Write a record that is in a buffer of the spill's; the buffer is the spill's again.

        Raises:
            StoreError: an earlier write has failed.
        """
        assert self.num_bytes + layout.num_bytes <= self._capacity, "more than was reserved"
        assert self._ahead is None, "what was begun to be read is not all there is"
        written = [write for write in self._writes if write.done()]
        self._writes[:] = [write for write in self._writes if write not in written]
        self._wait(written)
        self._writes.append(
            self._spill.begin_write(record, layout.num_bytes, self._offset + self.num_bytes)
        )
        self._layouts.append(layout)
        self.num_bytes += layout.num_bytes
        if not self._spill.overlap:
            self._wait(self._writes)

    def append_copy(self, layout: RecordLayout, tensors: Sequence[Tensor]) -> None:
        """Write a copy of some tensors as a record; see `append`."""
        record = self._spill.buffers.take(layout.num_bytes)
        for target, tensor in zip(layout.views(record), tensors, strict=True):
            target.copy_(tensor)
        self.append(layout, record)

    def replace_last(self, count: int, layout: RecordLayout, record: Tensor) -> None:
        """Write a record, as `append` does, in the place of the last so many, which have been read.

        Raises:
            StoreError: an earlier write has failed.
        """
        replaced = sum(self._layouts.pop().num_bytes for _ in range(count))
        assert layout.num_bytes <= replaced, "there is no other room for it"
        self.num_bytes -= replaced
        self.append(layout, record)

    def begin_read(self) -> int:
        """Begin to read, for the next who calls `read`, unless that has been done.

        Returns the bytes of memory taken until then.
        """
        if not self._spill.overlap:
            return 0
        self._ahead = self._ahead or self._begin()
        return self._ahead[0].nbytes

    def forget_read(self) -> None:
        """Give up the memory of what was begun to be read."""
        if self._ahead is None:
            return
        (buffer, futures), self._ahead = self._ahead, None
        self._wait(futures)
        self._spill.buffers.give(buffer)

    @contextmanager
    def read(self) -> Iterator[Records]:
        """Lend all there is; its memory is used again afterwards.

        Raises:
            StoreError: the disk cannot be used.
        """
        (buffer, futures), self._ahead = self._ahead or self._begin(), None
        self._wait(futures)
        try:
            yield Records(self._layouts, buffer)
        finally:
            self._spill.buffers.give(buffer)

    def _begin(self) -> tuple[Tensor, list[Future[None]]]:
        self._wait(self._writes)
        # As large as the region, so that one buffer serves it however much has been written.
        buffer = self._spill.buffers.take(self._capacity)
        return buffer, self._spill.begin_read(buffer[: self.num_bytes], self._offset)

    def _wait(self, futures: list[Future[None]]) -> None:
        try:
            with self._spill.waiting.for_disk():
                while futures:
                    futures.pop().result()
        except OSError as error:
            raise self._spill.explain(error) from error


def _joined(gaps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Make one gap of those that touch; they are sorted."""
    joined: list[tuple[int, int]] = []
    for offset, size in gaps:
        if joined and sum(joined[-1]) == offset:
            joined[-1] = joined[-1][0], joined[-1][1] + size
        else:
            joined.append((offset, size))
    return joined
