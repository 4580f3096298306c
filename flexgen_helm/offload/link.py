"""The link between the host's memory and that of a GPU: copies that go on beside computing.

Each kind of copy has a stream of its own, and waits by events for what it depends on, never for all
that a device has to do. Where device and host are one memory there is no link.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from flexgen_helm.offload.pinned import PinnedPool
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.specs.chunks import LOADS_IN_FLIGHT, STORES_IN_FLIGHT

T = TypeVar("T")

OWN_PINNED_BYTES = 16 << 20
"""From so many on, memory of the host is pinned by us: PyTorch takes ten times as long."""


class Lane(Enum):
    """Copies that wait for each other, and for no others."""

    WEIGHTS = "weights to the device"
    CACHE = "keys, values and hidden states to the device"
    STORE = "what was computed, to the host"
    ATTENTION = "what the host attends with, and what it attended to"


class Mark(Protocol):
    """A point in what the device has been given to compute."""

    def wait(self) -> None:
        """Wait until the device has come to it."""
        ...


class Transit(Protocol):
    """A tensor on its way."""

    def use(self) -> Tensor:
        """Return the copy, for what is computed from now on; the device waits, not the caller."""
        ...

    def wait(self) -> Tensor:
        """Wait until the copy is there; what was copied may be overwritten then."""
        ...

    def back(self, lane: Lane) -> Transit:
        """Begin to copy it to the device again, once it has come to the host."""
        ...


class Link(Protocol):
    """Copies between host and device."""

    waiting: Waiting
    """Told how long computing stood still."""

    overlap: bool
    """Whether to bring anything to the device before it is wanted."""

    copied: dict[Lane, int]
    """Bytes so far."""

    to_device_bytes: int
    """Of these, those to the device."""

    def buffer(self, num_bytes: int) -> Tensor:
        """Return zeros of the host, uint8, at least so many: aligned, and pinned."""
        ...

    def mark(self) -> Mark:
        """Return a mark behind all that has been given to the device to compute."""
        ...

    def up(self, source: Tensor, lane: Lane) -> Transit:
        """Begin to copy a tensor to memory of its own on the device."""
        ...

    def fill(self, target: Tensor, source: Tensor, after: Mark) -> Transit:
        """Begin to copy weights into memory of the device that is in use up to a mark."""
        ...

    def down(
        self, source: Tensor, lane: Lane = Lane.STORE, *, into: Tensor | None = None
    ) -> Transit:
        """Begin to copy what has been given to compute, once it is computed, to the host.

        To part of a `buffer`, or to memory of its own for a short time.
        """
        ...

    def pinned(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the host's in memory that `up` copies without waiting."""
        ...

    def beside(self, lane: Lane, work: Callable[[], T]) -> Future[T]:
        """Have a thread do what has to wait; what lanes but `CACHE` have, one after another."""
        ...

    def settle(self) -> None:
        """Count how long the device has waited for copies so far."""
        ...

    def close(self) -> None:
        """Wait for what threads are doing."""
        ...


def link_to(device: torch.device, waiting: Waiting, *, overlap: bool = True) -> Link | None:
    """Return the link to a device; `None` where it computes in the host's memory.

    Args:
        device: what computes.
        waiting: told how long it has waited for copies.
        overlap: whether to bring anything there before it is wanted.
    """
    return CudaLink(device, waiting, overlap=overlap) if device.type == "cuda" else None


class Beside:
    """Threads that wait for copies, so that whoever computes need not."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._threads = {
            lane: ThreadPoolExecutor(
                LOADS_IN_FLIGHT if lane is Lane.CACHE else 1, thread_name_prefix=f"link-{lane.name}"
            )
            for lane in Lane
        }
        self._stores = threading.Semaphore(STORES_IN_FLIGHT)

    def submit(self, lane: Lane, work: Callable[[], T]) -> Future[T]:
        """See `Link.beside`; waits where much is to be stored, as it takes memory until it is."""
        if lane is not Lane.STORE:
            return self._threads[lane].submit(self._uncounted, work)
        self._stores.acquire()
        future = self._threads[lane].submit(self._uncounted, work)
        future.add_done_callback(lambda _: self._stores.release())
        return future

    def close(self) -> None:
        """Wait for what they are doing."""
        for threads in self._threads.values():
            threads.shutdown()

    def _uncounted(self, work: Callable[[], T]) -> T:
        # Each thread has a mode of its own: what is computed in inference mode stays in it.
        with torch.inference_mode(), self._waiting.uncounted():
            return work()


class CudaLink:
    """Streams of a CUDA device.

    Args:
        device: the device.
        waiting: told how long it has waited for copies.
        overlap: see `Link.overlap`.
    """

    def __init__(self, device: torch.device, waiting: Waiting, *, overlap: bool = True) -> None:
        self._device = device
        self.overlap = overlap
        self.waiting = waiting
        self.copied = dict.fromkeys(Lane, 0)
        self.to_device_bytes = 0
        self._streams = {lane: torch.cuda.Stream(device) for lane in Lane}
        self._beside = Beside(waiting)
        self._pinned = PinnedPool()
        self._lock = threading.Lock()
        self._stalls: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._held: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def buffer(self, num_bytes: int) -> Tensor:
        """See `Link.buffer`.

        Raises:
            BudgetError: the system does not let so much memory be pinned.
        """
        return self._pinned.lend(num_bytes)

    def mark(self) -> Mark:
        return _CudaMark(torch.cuda.current_stream(self._device))

    def up(self, source: Tensor, lane: Lane, after: torch.cuda.Event | None = None) -> Transit:
        """See `Link.up`; `after` an event, if one is given."""
        if after is not None:
            self._streams[lane].wait_event(after)
        with torch.cuda.stream(self._streams[lane]):  # to which the copy's memory belongs, too
            copy = source.to(self._device, non_blocking=True)
        return self._transit(copy, source, lane)

    def fill(self, target: Tensor, source: Tensor, after: Mark) -> Transit:
        stream = self._streams[Lane.WEIGHTS]
        assert isinstance(after, _CudaMark), "it was made by `mark`"
        stream.wait_event(after.event)
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        return self._transit(target, source, Lane.WEIGHTS)

    def down(
        self, source: Tensor, lane: Lane = Lane.STORE, *, into: Tensor | None = None
    ) -> Transit:
        stream = self._streams[lane]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            copy = self._pinned_like(source) if into is None else into
            copy.copy_(source, non_blocking=True)
        # PyTorch lends the device's memory to nobody until it is copied. To hold it would keep it
        # there as long as the copy, which is made so that it need not be.
        source.record_stream(stream)
        return self._transit(copy, None, lane)

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    def beside(self, lane: Lane, work: Callable[[], T]) -> Future[T]:
        return self._beside.submit(lane, work)

    def settle(self) -> None:
        """See `Link.settle`: what the device has not come to yet counts the next time."""
        while self._stalls and self._stalls[0][1].query():
            before, after = self._stalls.popleft()
            self.waiting.add_link(before.elapsed_time(after) / 1000)

    def close(self) -> None:
        self._beside.close()
        while self._held:
            _, copied = self._held.popleft()
            copied.synchronize()

    def hold(self, source: Tensor, copied: torch.cuda.Event) -> None:
        """Keep what is copied to the device until it has been: its memory may be lent again."""
        with self._lock:
            self._held.append((source, copied))
            while self._held and self._held[0][1].query():
                self._held.popleft()

    def note_stall(self, before: torch.cuda.Event, after: torch.cuda.Event) -> None:
        """Take the events around a wait of the device."""
        with self._lock:
            self._stalls.append((before, after))

    def _pinned_like(self, source: Tensor) -> Tensor:
        """Return memory of the host for a copy, for a short time."""
        if source.nbytes < OWN_PINNED_BYTES:
            return torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        # Of few sizes, so that it is lent again.
        num_bytes = -(-source.nbytes // OWN_PINNED_BYTES) * OWN_PINNED_BYTES
        memory = self._pinned.lend(num_bytes, zeros=False)[: source.nbytes]
        return memory.view(source.dtype).view(source.shape)

    def _transit(self, copy: Tensor, source: Tensor | None, lane: Lane) -> _CudaTransit:
        with self._lock:
            self.copied[lane] += copy.nbytes
            if source is not None:
                self.to_device_bytes += copy.nbytes
        return _CudaTransit(copy, source, _CudaMark(self._streams[lane]).event, self)


class _CudaMark:
    """An event, for which threads wait asleep: others need the processor."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.event = torch.cuda.Event(blocking=True)
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()


class _CudaTransit:
    """A copy, and the event that follows it.

    Holds what is copied of the host's memory, which must outlast it; `None` of the device's.
    """

    def __init__(
        self, copy: Tensor, source: Tensor | None, done: torch.cuda.Event, link: CudaLink
    ) -> None:
        self._copy, self._source, self._done, self._link = copy, source, done, link
        self._used = False

    def use(self) -> Tensor:
        self._used = True
        compute = torch.cuda.current_stream(self._copy.device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record(compute)
        compute.wait_event(self._done)
        after.record(compute)
        self._link.note_stall(before, after)
        self._copy.record_stream(compute)
        if self._source is not None:
            self._link.hold(self._source, self._done)
        return self._copy

    def wait(self) -> Tensor:
        self._used = True
        self._done.synchronize()
        return self._copy

    def back(self, lane: Lane) -> Transit:
        self._used = True
        return self._link.up(self._copy, lane, self._done)

    def __del__(self) -> None:
        if not self._used:  # nobody has waited, and the memory of both is about to be another's
            with suppress(Exception):  # when the interpreter ends, CUDA may have ended before
                self._done.synchronize()
