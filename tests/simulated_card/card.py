"""A CUDA device made of the processor: what it computes is right, and what it is told is checked.

Tensors "on" it are tensors of the host, and everything is computed at once. What is checked is what
a real card may or may not forgive:

- that tensors of host and device do not meet in an operation;
- that whoever reads or writes memory has waited for whoever wrote or read it before, whichever
  streams and threads they are, and whoever has had the memory in the meantime;
- that memory is not given back while a stream may still use it;
- that nothing waits for the device where that is forbidden;
- what is done while a CUDA graph is captured, and that a replay finds its inputs where they were.
"""

import random
import threading
import weakref
from bisect import bisect_right
from contextlib import contextmanager

import numpy as np
import torch

from tests.simulated_card.clocks import Actor, Cells, Memory
from tests.simulated_card.frames import where

BLOCK_BYTES = 512
"""What PyTorch rounds memory up to."""

GARBAGE = 0x77
"""Bytes of memory that nobody has written yet."""

WORKSPACE_BYTES = 32 << 20
"""What cuBLAS works in, on Hopper."""


class Card:
    """The device, and what has been found wrong.

    Args:
        total_bytes: its memory.
        seed: of whether what has been given to compute is done when somebody asks.
    """

    def __init__(self, total_bytes=1 << 30, seed=0):
        self.total_bytes = total_bytes
        self.allowed_bytes = total_bytes
        self.allocated_bytes = self.peak_bytes = 0
        self.findings = []
        self.sync_mode = "default"
        self.has_workspace = False
        self.default_stream = Actor("the default stream")
        self.streams = [self.default_stream]
        self.pinned = PinnedMemory(self)
        self._random = random.Random(seed)
        self._here = threading.local()
        self._lock = threading.RLock()

    @property
    def thread(self):
        """The thread that asks, as an actor."""
        if not hasattr(self._here, "actor"):
            self._here.actor = Actor(threading.current_thread().name, of_host=True)
        return self._here.actor

    @property
    def stream(self):
        """The current stream."""
        return getattr(self._here, "stream", self.default_stream)

    @stream.setter
    def stream(self, stream):
        self._here.stream = stream

    @property
    def graph(self):
        """What this thread is capturing, if it is."""
        return getattr(self._here, "graph", None)

    @graph.setter
    def graph(self, graph):
        self._here.graph = graph

    def find(self, what):
        """Note a fault."""
        self.findings.append(what)

    def launch(self, stream=None):
        """Give a stream something to do, after all that this thread has done; return the stream."""
        stream = stream or self.stream
        stream.learn(self.thread.clock)
        stream.tick()
        return stream

    def synchronize(self, clock, *, why):
        """Have this thread wait for what is done by a clock."""
        if self.graph is not None:
            self.graph.forbid(why)
        if why != "an event" and self.sync_mode == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {why}")
        self.thread.learn(clock)

    def is_done(self, clock):
        """Whether that is done by now; sometimes."""
        if not self.knows(clock) and self._random.random() < 0.5:
            self.thread.learn(clock)
        return self.knows(clock)

    def knows(self, clock):
        """Whether this thread knows that it is."""
        return all(self.thread.knows(actor, tick) for actor, tick in clock.items())

    def take(self, num_bytes):
        """Take memory of the device."""
        with self._lock:
            if self.allocated_bytes + num_bytes > self.allowed_bytes:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {num_bytes} bytes beside"
                    f" {self.allocated_bytes} of {self.allowed_bytes}"
                )
            self.allocated_bytes += num_bytes
            self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        return num_bytes

    def take_workspace(self):
        """Take what products need once, and once more in each graph."""
        owner = self.graph or self
        if not owner.has_workspace:
            owner.has_workspace = True
            owner.take(WORKSPACE_BYTES)

    def give(self, num_bytes):
        """Take it back."""
        with self._lock:
            self.allocated_bytes -= num_bytes


def in_blocks(num_bytes):
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


class Allocation:
    """Memory of the device, which whoever takes it next shares with the stream it was taken on."""

    def __init__(self, card, content):
        self._card, self._base = card, content.data_ptr()
        self._num_bytes = 0  # also where there is no memory for it
        self._stream, self._graph = card.stream, card.graph
        self._memory = Memory(card.find)
        self._recorded = set()
        self._num_bytes = (card.graph or card).take(in_blocks(content.untyped_storage().nbytes()))

    def access(self, actor, tensor, *, writes, what):
        self._memory.access(actor, Cells.of(tensor, self._base), writes=writes, what=what)

    def record(self, stream):
        """Have PyTorch wait for a stream before the memory is anybody else's."""
        self._recorded.add(stream)

    def belongs_to(self, graph):
        return self._graph is graph

    def __del__(self):
        (self._graph or self._card).give(self._num_bytes)
        if self._graph is not None or not self._num_bytes:
            return
        for access in self._memory.unknown_to(self._stream, self._card.thread):
            if access.actor not in self._recorded:
                self._card.find(
                    f"memory is given back ({where()}), not waiting until it is {access}"
                )


class PinnedMemory:
    """Memory of the host that the device can copy by itself."""

    def __init__(self, card):
        self._card = card
        self._starts, self._stops, self._memories = [], [], []
        self._lock = threading.RLock()

    def register(self, address, num_bytes):
        with self._lock:
            place = bisect_right(self._starts, address)
            self._starts.insert(place, address)
            self._stops.insert(place, address + num_bytes)
            self._memories.insert(place, Memory(self._card.find))

    def unregister(self, address, *, waits=False):
        """Forget some memory; `waits` if it is not given back until the device has used it."""
        with self._lock:
            place = self._starts.index(address)
            memory = self._memories.pop(place)
            del self._starts[place], self._stops[place]
        for access in [] if waits else memory.unknown_to(self._card.thread):
            self._card.find(
                f"pinned memory is given back ({where()}), not waiting until it is {access}"
            )

    def of(self, tensor):
        """Return who has accessed a tensor's memory, `None` if it is not pinned."""
        if not self._starts or not tensor.numel():
            return None
        with self._lock:
            place = bisect_right(self._starts, tensor.data_ptr()) - 1
            inside = place >= 0 and tensor.data_ptr() < self._stops[place]
            return self._memories[place] if inside else None

    def access(self, actor, tensor, *, writes, what):
        memory = self.of(tensor)
        if memory is not None:
            memory.access(actor, Cells.of(tensor), writes=writes, what=what)

    def touch(self, tensor, *, writes, what):
        """Note what this thread does itself."""
        if self.of(tensor) is not None:
            self._card.thread.tick()
            self.access(self._card.thread, tensor, writes=writes, what=what)

    def empty(self, shape, dtype):
        """Return pinned memory of PyTorch's, which it keeps as long as copies use it."""
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        memory = np.full(num_bytes + 64, GARBAGE, dtype=np.uint8)
        start = -memory.ctypes.data % 64
        numbers = memory[start : start + max(1, num_bytes)]
        address = numbers.ctypes.data
        self.register(address, numbers.nbytes)
        weakref.finalize(numbers, self.unregister, address, waits=True).atexit = False
        return torch.from_numpy(numbers)[:num_bytes].view(dtype).view(shape)


@contextmanager
def on(card, stream):
    """Make a stream the current one."""
    before, card.stream = card.stream, stream
    try:
        yield
    finally:
        card.stream = before
