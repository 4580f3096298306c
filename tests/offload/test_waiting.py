import time
from contextlib import suppress

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
    with waiting.for_link():
        time.sleep(0.02)
    assert waiting.so_far.link_s >= 0.02
    assert waiting.so_far.disk_s == disk_s


def test_a_wait_that_ends_in_an_error_counts():
    waiting = Waiting()
    with suppress(OSError), waiting.for_disk():
        time.sleep(0.02)
        raise OSError("gone")
    assert waiting.so_far.disk_s >= 0.02
