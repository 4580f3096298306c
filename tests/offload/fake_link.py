"""A link between two parts of one memory, whose copies happen as early, or as late, as they may.

What reads a copy before it is there, or overwrites what is still to be copied, gives wrong results.
"""

from flexgen_helm.offload.disk import aligned_buffer
from flexgen_helm.offload.link import Beside, Lane
from flexgen_helm.offload.waiting import Waiting


class FakeLink:
    """Copies at once if eager, else when somebody waits for the copy.

    Args:
        eager: when to copy.
        waiting: as of a real link.
        overlap: likewise.
    """

    def __init__(self, *, eager, waiting=None, overlap=True):
        self.eager, self.overlap = eager, overlap
        self.waiting = waiting or Waiting()
        self.copied = dict.fromkeys(Lane, 0)
        self.to_device_bytes = 0
        self.marks = 0
        self._beside = Beside(self.waiting)
        self._filled = {}

    def buffer(self, num_bytes):
        return aligned_buffer(num_bytes)

    def mark(self):
        self.marks += 1
        return FakeMark(self.marks)

    def up(self, source, lane):
        self.to_device_bytes += source.nbytes
        return self._begin(source.clone().fill_(GARBAGE), source, lane)

    def fill(self, target, source, after):
        assert after.number <= self.marks
        content = source.clone()
        before, transit = self._filled.get(source.data_ptr(), (content, None))
        same = len(before) == len(content) and bool((before == content).all())
        assert same or transit.waited, "overwritten while a device might have been reading it"
        self.to_device_bytes += source.nbytes
        transit = self._begin(target, source, Lane.WEIGHTS)
        self._filled[source.data_ptr()] = content, transit
        return transit

    def down(self, source, lane=Lane.STORE, *, into=None):
        copy = source.clone() if into is None else into
        return self._begin(copy.fill_(GARBAGE), source, lane)

    def pinned(self, tensor):
        return tensor

    def beside(self, lane, work):
        return self._beside.submit(lane, work)

    def settle(self):
        pass

    def close(self):
        self._beside.close()

    def _begin(self, target, source, lane):
        self.copied[lane] += source.numel() * source.element_size()
        transit = FakeTransit(target, source, self)
        if self.eager:
            transit.copy()
        return transit


class FakeMark:
    def __init__(self, number):
        self.number = number

    def wait(self):
        pass


class FakeTransit:
    def __init__(self, target, source, link):
        self.target, self.source, self.link = target, source, link
        self.done = self.waited = False

    def use(self):
        self.copy()
        return self.target

    def wait(self):
        self.copy()
        self.waited = True
        return self.target

    def back(self, lane):
        self.copy()
        return self.link.up(self.target, lane)

    def copy(self):
        if not self.done:
            self.done = True
            self.target.copy_(self.source)


GARBAGE = 77
