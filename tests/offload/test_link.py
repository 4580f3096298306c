import threading
import time

import torch

from flexgen_helm.offload.link import Beside, Lane, link_to
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.specs.chunks import STORES_IN_FLIGHT


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


def test_whoever_stores_much_waits():
    beside, go_on, submitted = Beside(Waiting()), threading.Event(), []

    def submit():
        for number in range(STORES_IN_FLIGHT + 1):
            beside.submit(Lane.STORE, lambda: go_on.wait(5))
            submitted.append(number)

    thread = threading.Thread(target=submit)
    thread.start()
    while len(submitted) < STORES_IN_FLIGHT:
        time.sleep(0.001)
    thread.join(0.05)
    assert len(submitted) == STORES_IN_FLIGHT
    go_on.set()
    thread.join(5)
    assert len(submitted) == STORES_IN_FLIGHT + 1
    beside.close()
