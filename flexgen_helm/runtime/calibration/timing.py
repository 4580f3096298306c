"""How long something takes: the median of several times, after once to warm up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

REPETITIONS, ENOUGH_S = 3, 0.2
"""How often something is timed at least, and for how long."""

LONG_S = 2.0
"""What takes so long the first time is not timed again: warming up is a small part of it."""

LEAST_LEFT = 0.01
"""Part of a time that what is left of it after subtraction takes at least."""


class Stopwatch:
    """Times what a device computes, until it is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, function: Callable[[], object]) -> float:
        """Return seconds of a call."""
        return typical_s(partial(self._time_once, function))

    def times(self, functions: Sequence[Callable[[], object]]) -> list[float]:
        """Return seconds of calls that take turns: the machine may be slow for a while."""
        return _typical_of([partial(self._time_once, function) for function in functions])

    def time_longer(self, function: Callable[[], object], other: Callable[[], object]) -> float:
        """Return the seconds that a call takes longer than another.

        Both take turns, as their difference may be less than that of two times of the machine.
        """
        both = function, other
        pairs = [[self._time_once(each) for each in both]]  # to warm up
        start_s = time.perf_counter()
        while len(pairs) <= REPETITIONS or elapsed_s(start_s) < ENOUGH_S:
            pairs.append([self._time_once(each) for each in both])
        longer_s = median(seconds - other_s for seconds, other_s in pairs[1:])
        return max(longer_s, LEAST_LEFT * median(seconds for seconds, _ in pairs[1:]))

    def synchronize(self) -> None:
        """Wait until the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _time_once(self, function: Callable[[], object]) -> float:
        self.synchronize()
        start_s = time.perf_counter()
        function()
        self.synchronize()
        return elapsed_s(start_s)


def elapsed_s(start_s: float) -> float:
    """Return the seconds since a point in time."""
    return time.perf_counter() - start_s


def left_s(whole_s: float, known_s: float) -> float:
    """Return what is left of a time when what is known of it is taken away."""
    return max(whole_s - known_s, LEAST_LEFT * whole_s)


def typical_s(measure: Callable[[], float]) -> float:
    """Return the median of seconds that are measured several times, after once to warm up."""
    [seconds] = _typical_of([measure])
    return seconds


def _typical_of(measures: Sequence[Callable[[], float]]) -> list[float]:
    """Do as `typical_s` does, for several in turn."""
    first = [measure() for measure in measures]
    found: list[list[float]] = [[] for _ in measures]
    for turn in range(1, 1 + REPETITIONS):
        for measure, seconds, first_s in zip(measures, found, first, strict=True):
            while first_s < LONG_S and (
                len(seconds) < turn or sum(seconds) < ENOUGH_S * turn / REPETITIONS
            ):
                seconds.append(measure())
    return [median(again or [once]) for again, once in zip(found, first, strict=True)]
