"""The engines of this process: one in memory at a time, shared by all clients that want it.

HELM may build several clients for one deployment (its look-up has no lock) and calls them from
several threads. They meet here: requests for one engine go through one queue, and another engine
is loaded only after the one before it was closed, since two large models rarely fit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import cast

from helm.common.hierarchical_logger import hexception
from helm.common.object_spec import get_class_by_name

from flexgen_helm.adapter.backend import Backend, EngineSettings, GenerationEngine, Identity
from flexgen_helm.adapter.compute import ComputeJob, Outcome, compute
from flexgen_helm.adapter.responses import Response
from flexgen_helm.batching.request_queue import RequestQueue
from flexgen_helm.errors import EngineClosedError


class EngineSlot:
    """Room for one engine."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._settings: EngineSettings | None = None
        self._engine: GenerationEngine | None = None

    @contextmanager
    def use(self, settings: EngineSettings) -> Iterator[GenerationEngine]:
        """Lend the engine with these settings to one user at a time, loading it if need be."""
        with self._lock:
            if self._engine is None or self._settings != settings:
                self.close()
                self._engine = backend_of(settings).load(settings)
                self._settings = settings
            try:
                yield self._engine
            except EngineClosedError:  # it is gone: whoever comes next needs another
                self._engine = None
                raise

    def close(self) -> None:
        """Close the engine, if there is one, once its user is done. What goes wrong is logged."""
        with self._lock:
            if self._engine is not None:
                engine, self._engine = self._engine, None
                try:
                    engine.close()
                except Exception as error:  # neither known answers nor another engine need it
                    hexception(error)


class EngineService:
    """What clients with equal settings share: the identity of their engine and its queue."""

    def __init__(self, settings: EngineSettings, slot: EngineSlot) -> None:
        self._settings = settings
        self._slot = slot
        self._lock = threading.Lock()
        self._queue: RequestQueue[ComputeJob, Response] = RequestQueue(self._run_batch)

    @property
    def identity(self) -> Identity:
        """What fixes the engine's output; found out once, without loading it.

        Raises:
            FlexGenError: the checkpoint cannot be found or read. It is not looked for again.
        """
        with self._lock:
            if isinstance(self._identity, Exception):
                raise self._identity
            return self._identity

    def submit(self, job: ComputeJob) -> Future[Response]:
        """Compute a job together with what other threads submit at about the same time."""
        return self._queue.submit(job)

    @contextmanager
    def engine(self) -> Iterator[GenerationEngine]:
        """Borrow the engine."""
        with self._slot.use(self._settings) as engine:
            yield engine

    def begin_load(self) -> None:
        """Have the engine loaded, where that can be done beside other calls to its backend.

        Raises:
            FlexGenError: it cannot be begun.
        """
        backend_of(self._settings).begin_load(self._settings)

    def load_ahead(self) -> None:
        """Begin to load the engine for whoever borrows it next; that one hears of what failed."""
        threading.Thread(target=self._load, daemon=True).start()

    def _load(self) -> None:
        with suppress(Exception), self.engine():
            pass

    @cached_property
    def _identity(self) -> Identity | Exception:
        try:
            return backend_of(self._settings).identify(self._settings)
        except Exception as error:
            return error

    def _run_batch(self, jobs: Sequence[ComputeJob]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        compute(self.engine, jobs, outcomes.__setitem__)
        return [outcomes[index] for index in range(len(jobs))]


class EngineRegistry:
    """Finds the service for given settings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slot = EngineSlot()
        self._services: dict[EngineSettings, EngineService] = {}
        self._called = False

    def service(self, settings: EngineSettings) -> EngineService:
        """Return the one service with these settings."""
        with self._lock:
            if settings not in self._services:
                self._services[settings] = EngineService(settings, self._slot)
            return self._services[settings]

    def is_first_call(self) -> bool:
        """Whether nobody has asked this before, in any thread."""
        with self._lock:
            called, self._called = self._called, True
            return not called

    def close_engine(self) -> None:
        """Give back the memory of the engine that was used last; it is loaded again on demand."""
        self._slot.close()


def backend_of(settings: EngineSettings) -> Backend:
    """Return the backend that the settings name."""
    return cast("Backend", get_class_by_name(settings.backend)())


ENGINES = EngineRegistry()
"""The registry of this process."""
