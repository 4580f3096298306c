"""Vector clocks: what was certainly done before what.

Streams and threads of the host are actors. One knows of what another did only from the moment where
it has waited for that, or for what came after it; two accesses of which neither's actor knows of
the other can happen in any order, whatever happened here.
"""

import threading
from typing import NamedTuple

import numpy as np

from tests.simulated_card.frames import where


class Actor:
    """What does one thing after another.

    Args:
        name: for people.
        of_host: whether it is one of the host's threads: these wait for each other in ways that are
            not followed, and what only they do is no fault.
    """

    def __init__(self, name, *, of_host=False):
        self.name, self.of_host = name, of_host
        self.clock = {}
        # Threads share streams; and what is collected in between may come here again.
        self._lock = threading.RLock()

    def learn(self, clock):
        with self._lock:
            for actor, tick in list(clock.items()):
                if self.clock.get(actor, 0) < tick:
                    self.clock[actor] = tick

    def tick(self):
        with self._lock:
            self.clock[self] = self.clock.get(self, 0) + 1

    def knows(self, actor, tick):
        return self.clock.get(actor, 0) >= tick

    def __repr__(self):
        return self.name


class Access(NamedTuple):
    actor: Actor
    tick: int
    cells: "Cells"
    writes: bool
    what: str
    where: str

    def is_known_to(self, *actors):
        return any(actor.knows(self.actor, self.tick) for actor in actors)

    def __str__(self):
        verb = "written" if self.writes else "read"
        return f"{verb} by {self.what} on {self.actor} ({self.where})"


class Cells:
    """Bytes of memory that a tensor has."""

    def __init__(self, address, shape, strides, itemsize):
        self._shape, self._strides, self._itemsize = shape, strides, itemsize
        self.start = address
        reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        self.stop = address + (reach + 1) * itemsize if all(shape) else address

    @classmethod
    def of(cls, tensor, base=0):
        """Those of a tensor; addresses count from `base`."""
        address = tensor.data_ptr() - base
        return cls(address, tensor.shape, tensor.stride(), tensor.element_size())

    def overlap(self, other):
        if self.start >= other.stop or other.start >= self.stop:
            return False
        return bool(np.intersect1d(self._bytes(), other._bytes()).size)

    def cover(self, other):
        dense = self.stop - self.start == int(np.prod(self._shape)) * self._itemsize
        return dense and self.start <= other.start and other.stop <= self.stop

    def _bytes(self):
        address = np.array(self.start)
        for count, stride in zip(self._shape, self._strides, strict=True):
            address = address[..., None] + np.arange(count) * stride * self._itemsize
        return (address[..., None] + np.arange(self._itemsize)).ravel()


class Memory:
    """Who has accessed some memory, as far as that can still matter.

    Args:
        report: called with what two actors do without waiting for each other.
    """

    def __init__(self, report):
        self._report = report
        self._accesses = []
        self._lock = threading.RLock()

    def access(self, actor, cells, *, writes, what):
        """Note an access, which the actor's clock has counted already."""
        new = Access(actor, actor.clock[actor], cells, writes, what, where())
        with self._lock:
            kept = []
            for old in self._accesses:
                known = old.is_known_to(actor)
                followed = not (actor.of_host and old.actor.of_host)
                matters = followed and (old.writes or writes)
                if matters and not known and cells.overlap(old.cells):
                    self._report(f"memory is {new}, not waiting until it is {old}")
                covered = cells.cover(old.cells) and known and (writes or not old.writes)
                if not covered:
                    kept.append(old)
            self._accesses = [*kept, new]

    def unknown_to(self, *actors):
        """Accesses of streams that may still be to come for some actors."""
        return [
            access
            for access in self._accesses
            if not access.actor.of_host and not access.is_known_to(*actors)
        ]
