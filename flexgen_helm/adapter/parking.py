"""Work that stops half-way, lets others go first and is carried on later.

HELM takes a run from its scenario to its files in one call, which can stop in the middle only on a
stack of its own: a thread. Threads are no more than that here. Whoever begins or finishes a work
waits until it stops, so only one of them moves at any time, and the order is fixed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from flexgen_helm.adapter.random_state import RandomState


class Abandoned(BaseException):
    """Ends work that is not to be carried on; raised where it is parked."""


class ParkableWork:
    """A call that may park once and is then finished or abandoned."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        # A daemon: work that an interrupt left parked must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._abandoned = False
        self._began_at = RandomState.current()
        self._parked_at = self._began_at
        self.parked = False
        """Whether it waits to be finished."""
        self.error: BaseException | None = None
        """What it raised."""

    def begin(self) -> None:
        """Work until it parks or ends."""
        self._thread.start()
        self._stopped.acquire()

    def park(self) -> None:
        """Stop here until this work is finished or abandoned; called by the work itself."""
        self._parked_at = RandomState.current()
        self.parked = True
        self._stopped.release()
        self._go.acquire()
        self.parked = False
        if self._abandoned:
            raise Abandoned

    def finish(self) -> bool:
        """Carry parked work on to its end, with the random numbers it would have had unparked.

        Returns:
            whether that is done. It is not where the work failed, or began with other random
            numbers than it would begin with now. All is then ready for doing it again.
        """
        now = RandomState.current()
        if self._began_at != now:
            self.abandon()
            return False
        self._parked_at.restore()
        self._carry_on()
        if self.error is not None:
            now.restore()
        return self.error is None

    def abandon(self) -> None:
        """End parked work and let go of what it holds."""
        self._abandoned = True
        self._carry_on()

    def _carry_on(self) -> None:
        self._go.release()
        self._stopped.acquire()

    def _run(self) -> None:
        try:
            self._work()
        except Abandoned:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._stopped.release()
