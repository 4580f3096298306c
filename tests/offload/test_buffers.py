import torch

from flexgen_helm.offload.buffers import Buffers
from flexgen_helm.offload.disk import ALIGNMENT


def test_buffers_come_back_if_they_fit():
    buffers = Buffers(100 * ALIGNMENT)
    large, small = buffers.take(10 * ALIGNMENT), buffers.take(ALIGNMENT)
    buffers.give(large)
    buffers.give(small)
    assert buffers.take(2 * ALIGNMENT) is not large, "five times of what is needed"
    middle = buffers.take(7 * ALIGNMENT)
    assert middle is large
    middle = buffers.take(7 * ALIGNMENT)
    buffers.give(large)
    buffers.give(middle)
    assert buffers.take(6 * ALIGNMENT) is middle, "the smaller of two"


def test_buffers_idle_for_longest_are_forgotten():
    made = iter(range(6))
    buffers = Buffers(500, lambda size: torch.full((), next(made), dtype=torch.uint8).expand(size))
    taken = [buffers.take(100) for _ in range(5)]
    for buffer in taken:
        buffers.give(buffer)
    assert [int(buffer[0]) for buffer in buffers._idle] == [0, 1, 2, 3, 4]
    buffers.take(250)
    assert [int(buffer[0]) for buffer in buffers._idle] == [3, 4], "all have 450 of 500"


def test_buffers_that_were_lost_do_not_count():
    buffers = Buffers(2 * ALIGNMENT)
    lost, kept = buffers.take(ALIGNMENT), buffers.take(ALIGNMENT)
    buffers.give(buffers.take(ALIGNMENT))
    assert not buffers._idle, "there are two in use already"
    del lost
    buffers.give(kept)
    buffers.give(buffers.take(ALIGNMENT))
    assert len(buffers._idle) == 1
