"""Answering all requests of a suite before HELM asks for them one by one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from helm.common.cache import write_to_key_value_store
from helm.common.hierarchical_logger import hlog
from helm.common.key_value_store import KeyValueStore
from helm.common.request import Request

from flexgen_helm.adapter.backend import GenerationEngine
from flexgen_helm.adapter.cache import CacheKey, ResponseCache, key_text
from flexgen_helm.adapter.compute import ComputeJob, Outcome, compute
from flexgen_helm.adapter.progress import SuiteProgress
from flexgen_helm.adapter.responses import Response


class Answers:
    """Outcomes by cache key. A computed one counts as cached from the second time it is taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: dict[str, Outcome] = {}
        self._fresh: set[str] = set()
        self.complete = True
        """Whether every request has got an answer."""

    def add(self, key: CacheKey, outcome: Outcome, *, fresh: bool) -> None:
        """Keep an outcome; `fresh` says that it was computed just now."""
        self._outcomes[key_text(key)] = outcome
        if fresh:
            self._fresh.add(key_text(key))
        if isinstance(outcome, Exception):
            self.complete = False

    def take(self, key: CacheKey) -> tuple[Response, bool] | None:
        """Return an answer and whether it was cached; `None` where there is none.

        Raises:
            Exception: what went wrong when the answer was computed.
        """
        text = key_text(key)
        outcome = self._outcomes.get(text)
        if outcome is None:
            return None
        if isinstance(outcome, Exception):
            raise outcome
        with self._lock:
            fresh = text in self._fresh
            self._fresh.discard(text)
        return outcome, not fresh

    def responses(self, keys: Iterable[CacheKey]) -> list[tuple[Response, int]]:
        """Return the answer to each of these keys that has one, and how often the key is there."""
        counts = Counter(map(key_text, keys))
        outcomes = ((self._outcomes.get(text), count) for text, count in counts.items())
        return [(outcome, count) for outcome, count in outcomes if isinstance(outcome, dict)]

    def __contains__(self, key: CacheKey) -> bool:
        return key_text(key) in self._outcomes


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """What preparing the requests of a deployment takes."""

    name: str
    """Of the deployment."""

    key_of: Callable[[Request], CacheKey]
    """Raises for a request that cannot be served."""

    job_of: Callable[[Request], ComputeJob]
    """Raises likewise."""

    cache: ResponseCache
    """Where answers are looked up and kept."""

    borrow_engine: Callable[[], AbstractContextManager[GenerationEngine]]
    """Loads the engine if need be."""


def prepare(deployed: Deployed, requests: Sequence[Request], progress: SuiteProgress) -> Answers:
    """Look requests up in the cache and compute the missing ones together.

    Each answer is written to the cache as soon as it is known, so that nothing is lost when the
    process is killed. What cannot be answered is in the answers as the error it raised.
    """
    answers = Answers()
    with deployed.cache.open() as store:
        missing = _look_up(deployed, requests, store, answers)
        hlog(f"{deployed.name}: {len(requests)} requests, {len(missing)} of them to compute")
        jobs = _make_jobs(deployed, missing, answers)
        progress.begin(deployed.name, len(jobs))
        if jobs:
            _compute(deployed, jobs, store, answers, progress)
    return answers


def _look_up(
    deployed: Deployed, requests: Sequence[Request], store: KeyValueStore, answers: Answers
) -> list[tuple[CacheKey, Request]]:
    """Take what the cache has, and return the distinct requests it lacks."""
    missing: dict[str, tuple[CacheKey, Request]] = {}
    for request in requests:
        try:
            key = deployed.key_of(request)
        except Exception:  # asked for again, it will say so again
            answers.complete = False
            continue
        if key in answers or key_text(key) in missing:
            continue
        response = store.get(key)
        if response is None:
            missing[key_text(key)] = (key, request)
        else:
            answers.add(key, response, fresh=False)
    return list(missing.values())


def _make_jobs(
    deployed: Deployed, missing: Sequence[tuple[CacheKey, Request]], answers: Answers
) -> list[tuple[CacheKey, ComputeJob]]:
    jobs = []
    for key, request in missing:
        try:
            jobs.append((key, deployed.job_of(request)))
        except Exception as error:
            answers.add(key, error, fresh=False)
    return jobs


def _compute(
    deployed: Deployed,
    jobs: Sequence[tuple[CacheKey, ComputeJob]],
    store: KeyValueStore,
    answers: Answers,
    progress: SuiteProgress,
) -> None:
    def keep(index: int, outcome: Outcome) -> None:
        key = jobs[index][0]
        if isinstance(outcome, dict):
            write_to_key_value_store(store, key, outcome)
        answers.add(key, outcome, fresh=True)
        progress.update()

    compute(deployed.borrow_engine, [job for _, job in jobs], keep)
