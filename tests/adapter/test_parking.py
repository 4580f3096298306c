import random
import threading

import numpy as np
import pytest

from flexgen_helm.adapter.parking import ParkableWork
from flexgen_helm.adapter.random_state import RandomState


@pytest.fixture(autouse=True)
def seeded():
    """Random numbers from a known place on, and no thread left behind."""
    state, threads = RandomState.current(), set(threading.enumerate())
    random.seed(1)
    np.random.seed(1)
    yield
    state.restore()
    assert threads.issuperset(threading.enumerate())  # those of other tests may end meanwhile


def draw():
    return random.random(), np.random.random()


class Work:
    """Draws random numbers, parks, and draws more."""

    def __init__(self, error=None):
        self.draws = []
        self.cleaned_up = False
        self.error = error
        self.parkable = ParkableWork(self._run)

    def _run(self):
        try:
            self.draws.append(draw())
            self.parkable.park()
            if self.error is not None:
                raise self.error
            self.draws.append(draw())
        finally:
            self.cleaned_up = True


def test_works_draw_the_numbers_they_would_draw_unparked():
    expected = [draw() for _ in range(2)]
    random.seed(1)
    np.random.seed(1)
    work = Work()
    start = RandomState.current()
    work.parkable.begin()
    draw()
    start.restore()
    assert work.parkable.parked
    assert work.draws == expected[:1]
    assert work.parkable.finish()
    assert work.draws == expected
    assert not work.parkable.parked


def test_works_take_turns():
    start = RandomState.current()
    first, second = Work(), Work()
    first.parkable.begin()
    second.parkable = ParkableWork(second._run)  # begins where the first parked
    second.parkable.begin()
    start.restore()
    assert first.parkable.finish()
    assert len(first.draws) == 2
    assert len(second.draws) == 1
    # The first drew again after the second had begun, so the second would begin elsewhere now.
    assert not second.parkable.finish()
    assert len(second.draws) == 1
    assert second.cleaned_up


def test_failed_work_leaves_the_numbers_to_whoever_does_it_again():
    start = RandomState.current()
    work = Work(error=ValueError("no"))
    work.parkable.begin()
    start.restore()
    assert not work.parkable.finish()
    assert str(work.parkable.error) == "no"
    assert RandomState.current() == start


def test_abandoned_work_cleans_up():
    work = Work()
    work.parkable.begin()
    work.parkable.abandon()
    assert work.cleaned_up
    assert work.parkable.error is None
    assert len(work.draws) == 1


def test_work_may_end_without_parking():
    done = []
    work = ParkableWork(lambda: done.append(threading.current_thread()))
    work.begin()
    assert done != [threading.current_thread()]
    assert not work.parked
    assert work.error is None


def test_work_that_fails_before_it_parks_says_so():
    def fail():
        raise ValueError("at once")

    work = ParkableWork(fail)
    work.begin()
    assert not work.parked
    assert str(work.error) == "at once"


def test_random_states_are_equal_where_the_next_numbers_are():
    state = RandomState.current()
    numbers = draw()
    assert RandomState.current() != state
    state.restore()
    assert RandomState.current() == state
    assert draw() == numbers
