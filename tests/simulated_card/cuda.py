"""What the package calls of `torch.cuda`, and of threads, for a simulated card."""

import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch

from flexgen_helm.offload import buffers, pinned, spill
from flexgen_helm.offload.disk import DirectFile
from flexgen_helm.quant import kernels
from tests.simulated_card.card import on
from tests.simulated_card.clocks import Actor
from tests.simulated_card.kernels import WRITTEN
from tests.simulated_card.tensors import DeviceTensor, OnCard, launch_kernel


@contextmanager
def installed(card, monkeypatch):
    """Have PyTorch find a card."""
    torch._C._ensureCUDADeviceGuardSet()  # to be told of a device there is none of
    with monkeypatch.context() as patch:
        for name, value in _names(card).items():
            patch.setattr(torch.cuda, name, value)
        _follow_kernels(card, patch)
        _follow_threads(card, patch)
        _follow_files(card, patch)
        with OnCard(card):
            yield


class Stream:
    def __init__(self, card, actor):
        self.device = torch.device("cuda", 0)
        self.actor = actor
        self._card = card

    def wait_event(self, event):
        if self._card.graph not in (None, event.graph):
            self._card.graph.forbid("waiting for what is not captured")
        self.actor.learn(event.clock)

    def wait_stream(self, stream):
        self.actor.learn(stream.actor.clock)


class Event:
    def __init__(self, card):
        self._card = card
        self.clock = {}
        self.graph = None

    def record(self, stream=None):
        actor = self._card.stream if stream is None else stream.actor
        self._card.launch(actor)
        self.clock, self.graph = dict(actor.clock), self._card.graph

    def synchronize(self):
        self._card.synchronize(self.clock, why="an event")

    def query(self):
        return self._card.is_done(self.clock)

    def elapsed_time(self, later):
        for event in (self, later):
            if not self._card.knows(event.clock):
                raise RuntimeError("CUDA error: device not ready")
        return 1.0


class Graph:
    """What has been captured; its memory is its own until nobody has it."""

    def __init__(self, card):
        self._card = card
        self._calls = []
        self._accesses = {}
        self._in_use = self._reserved = 0
        self.failed = self.has_workspace = False

    def forbid(self, what):
        self.failed = True
        raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def add(self, call, accesses, what):
        """Take what is done at every replay."""
        self._calls.append(call)
        for tensor, writes in accesses:
            on_device = isinstance(tensor, DeviceTensor)
            content = tensor.content if on_device else tensor
            allocation = weakref.ref(tensor.allocation) if on_device else None
            own = on_device and tensor.allocation.belongs_to(self)
            key = content.data_ptr(), content.shape, content.stride(), content.dtype, writes
            self._accesses[key] = (content, allocation, own, writes, what)

    def take(self, num_bytes):
        self._in_use += num_bytes
        if self._in_use > self._reserved:
            self._card.take(self._in_use - self._reserved)
            self._reserved = self._in_use
        return num_bytes

    def give(self, num_bytes):
        self._in_use -= num_bytes

    def replay(self):
        stream = self._card.launch()
        for content, allocation, own, writes, what in self._accesses.values():
            if allocation is None:
                self._card.pinned.access(stream, content, writes=writes, what=what)
            elif (memory := allocation()) is not None:
                memory.access(stream, content, writes=writes, what=what)
            elif not own:
                self._card.find(f"a graph replays {what} with memory that was given back")
        for call in self._calls:
            call.again()

    def __del__(self):
        self._card.give(self._reserved)


class Capturing:
    """`torch.cuda.graph`, which leaves its stream the current one where capturing has failed."""

    def __init__(self, card, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local", "others go on meanwhile"
        self._card, self._graph, self._stream = card, graph, stream

    def __enter__(self):
        self._card.synchronize(_everything(self._card), why="the device")
        self._before, self._card.stream = self._card.stream, self._stream.actor
        self._card.graph = self._graph

    def __exit__(self, *error):
        self._card.graph = None
        if self._graph.failed:
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )
        self._card.stream = self._before


def _names(card):
    def new_stream(device=None):
        actor = Actor(f"stream {len(card.streams)}")
        card.streams.append(actor)
        return Stream(card, actor)

    def cap(fraction, device):
        card.allowed_bytes = int(fraction * card.total_bytes)

    def reset_peak(device=None):
        card.peak_bytes = card.allocated_bytes

    def set_sync_mode(mode):
        card.sync_mode = mode

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device_of": lambda _: nullcontext(),
        "Stream": new_stream,
        "Event": lambda **_: Event(card),
        "stream": lambda stream: on(card, stream.actor),
        "current_stream": lambda _=None: Stream(card, card.stream),
        "synchronize": lambda _=None: card.synchronize(_everything(card), why="the device"),
        "CUDAGraph": lambda: Graph(card),
        "graph": lambda graph, **options: Capturing(card, graph, **options),
        "memory_allocated": lambda _=None: card.allocated_bytes,
        "max_memory_allocated": lambda _=None: card.peak_bytes,
        "max_memory_reserved": lambda _=None: card.peak_bytes,
        "memory_stats": lambda _=None: {"num_alloc_retries": 0},
        "reset_peak_memory_stats": reset_peak,
        "mem_get_info": lambda _=None: (
            card.total_bytes - card.allocated_bytes,
            card.total_bytes,
        ),
        "get_device_properties": lambda _=None: SimpleNamespace(total_memory=card.total_bytes),
        "get_device_name": lambda _=None: "a simulated card",
        "set_per_process_memory_fraction": cap,
        "set_sync_debug_mode": set_sync_mode,
        "empty_cache": lambda: None,
        "cudart": lambda: SimpleNamespace(
            cudaHostRegister=lambda address, size, _: card.pinned.register(address, size) or 0,
            cudaHostUnregister=lambda address: card.pinned.unregister(address) or 0,
        ),
    }


def _everything(card):
    everything = Actor("all streams")
    for stream in card.streams:
        everything.learn(stream.clock)
    return everything.clock


def _follow_threads(card, patch):
    """What a thread is given to do it does after what was done before, and so on."""
    run, join = threading.Thread.run, threading.Thread.join
    submit, result = ThreadPoolExecutor.submit, Future.result

    def run_on_card(thread):
        with OnCard(card):
            run(thread)
        thread.clock = card.thread.clock

    def join_after(thread, timeout=None):
        join(thread, timeout)
        card.thread.learn(getattr(thread, "clock", {}))

    def submit_after(threads, work, *args, **kwargs):
        before, done = dict(card.thread.clock), {}

        def work_after(*args, **kwargs):
            card.thread.learn(before)
            try:
                return work(*args, **kwargs)
            finally:
                done.update(card.thread.clock)

        future = submit(threads, work_after, *args, **kwargs)
        future.clock = done
        return future

    def result_after(future, timeout=None):
        try:
            return result(future, timeout)
        finally:
            card.thread.learn(getattr(future, "clock", {}))

    patch.setattr(threading.Thread, "run", run_on_card)
    patch.setattr(threading.Thread, "join", join_after)
    patch.setattr(ThreadPoolExecutor, "submit", submit_after)
    patch.setattr(Future, "result", result_after)
    # These hand memory from one thread to another under a lock.
    for module in (buffers, spill, pinned):
        locks = SimpleNamespace(
            Lock=lambda: _Lock(card, threading.Lock()),
            RLock=lambda: _Lock(card, threading.RLock()),
            Semaphore=threading.Semaphore,
        )
        patch.setattr(module, "threading", locks)


class _Lock:
    def __init__(self, card, lock):
        self._card, self._lock, self._clock = card, lock, Actor("a lock")

    def __enter__(self):
        self._lock.acquire()
        self._card.thread.learn(self._clock.clock)

    def __exit__(self, *error):
        self._clock.learn(self._card.thread.clock)
        self._lock.release()


def _follow_kernels(card, patch):
    """The card has those of Triton's, and computes them as PyTorch does."""
    patch.setattr(kernels, "_compile", lambda: True)

    def launched(kernel, written):
        return lambda *args: launch_kernel(card, kernel, written, args)

    for kernel, written in WRITTEN.items():
        patch.setattr(kernels, kernel.__name__, launched(kernel, written))


def _follow_files(card, patch):
    """Disk and memory exchange bytes without asking PyTorch."""
    fill, store = DirectFile.fill, DirectFile.store

    def fill_noted(file, buffer, offset):
        card.pinned.touch(buffer, writes=True, what="a read of the disk")
        fill(file, buffer, offset)

    def store_noted(file, buffer, offset):
        card.pinned.touch(buffer, writes=False, what="a write to the disk")
        store(file, buffer, offset)

    patch.setattr(DirectFile, "fill", fill_noted)
    patch.setattr(DirectFile, "store", store_noted)
