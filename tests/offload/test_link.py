import gc
import threading

import pytest
import torch

from flexgen_helm.errors import BudgetError
from flexgen_helm.offload import link
from flexgen_helm.offload.link import Beside, Lane, link_to
from flexgen_helm.offload.waiting import Waiting


def test_one_memory_has_no_link():
    assert link_to(torch.device("cpu"), Waiting()) is None


def test_what_threads_do_is_in_order_but_for_the_cache():
    beside, order, begun = Beside(Waiting()), [], threading.Event()
    first = beside.submit(Lane.STORE, lambda: begun.wait(5) and order.append("first"))
    second = beside.submit(Lane.STORE, lambda: order.append("second"))
    beside.submit(Lane.CACHE, lambda: order.append("meanwhile")).result()
    begun.set()
    assert first.result() is second.result() is None
    assert order == ["meanwhile", "first", "second"]
    both = threading.Barrier(2)
    together = [beside.submit(Lane.CACHE, lambda: both.wait(5)) for _ in range(2)]
    assert sorted(wait.result() for wait in together) == [0, 1]


class Runtime:
    """What there is to register memory with."""

    def __init__(self, code):
        self.code, self.registered = code, {}

    def cudaHostRegister(self, address, num_bytes, _):  # noqa: N802 - as CUDA calls it
        self.registered[address] = num_bytes
        return self.code

    def cudaHostUnregister(self, address):  # noqa: N802
        del self.registered[address]


def test_pinned_memory_is_registered_as_long_as_a_tensor_has_it(monkeypatch):
    runtime = Runtime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    buffer = torch.frombuffer(link._PinnedMemory(8192), dtype=torch.uint8)
    part = buffer[4096:]
    assert runtime.registered == {buffer.data_ptr(): 8192}
    assert not buffer.any()
    del buffer
    gc.collect()
    part.fill_(1)
    assert runtime.registered
    del part
    gc.collect()
    assert not runtime.registered


def test_memory_that_cannot_be_pinned_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime(2))
    with pytest.raises(BudgetError, match="8192 bytes of the host's memory cannot be pinned"):
        link._PinnedMemory(8192)
