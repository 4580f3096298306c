import time
from contextlib import suppress
from threading import Thread

from flexgen_helm.offload.waiting import Waiting


def test_waits_add_up_by_what_was_waited_for():
    waiting = Waiting()
    assert waiting.so_far == (0, 0)
    with waiting.for_disk():
        time.sleep(0.02)
    with waiting.for_disk():
        time.sleep(0.02)
    disk_s, link_s = waiting.so_far
    assert disk_s >= 0.04
    assert link_s == 0
    waiting.add_link(0.5)
    waiting.add_link(0.25)
    assert waiting.so_far == (disk_s, 0.75)


def test_what_others_wait_for_does_not_count():
    waiting = Waiting()

    def wait():
        with waiting.uncounted(), waiting.for_disk():
            time.sleep(0.02)

    thread = Thread(target=wait)
    with waiting.for_disk():
        thread.start()
    thread.join()
    assert waiting.so_far.disk_s < 0.02
    with waiting.for_disk():
        time.sleep(0.02)
    assert waiting.so_far.disk_s >= 0.02, "another thread's waits count as before"


def test_a_wait_that_ends_in_an_error_counts():
    waiting = Waiting()
    with suppress(OSError), waiting.for_disk():
        time.sleep(0.02)
        raise OSError("gone")
    assert waiting.so_far.disk_s >= 0.02


def test_what_does_not_come_from_the_disk_does_not_count():
    waiting = Waiting()
    with waiting.for_disk(used=False):
        time.sleep(0.01)
    assert waiting.so_far.disk_s == 0
