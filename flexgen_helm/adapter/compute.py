"""Computing a batch of requests so that what goes wrong stays with the request it belongs to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from helm.common.hierarchical_logger import hexception

from flexgen_helm.adapter.backend import GenerationEngine
from flexgen_helm.adapter.prompts import EncodedPrompt
from flexgen_helm.adapter.responses import Response, write_response
from flexgen_helm.errors import FlexGenError
from flexgen_helm.specs.request import GenerationRequest, GenerationResult

Outcome = Response | Exception
"""An answer, or why there is none."""

OnOutcome = Callable[[int, Outcome], None]
"""Called with the index of a job and its outcome."""


@dataclass(frozen=True, kw_only=True)
class ComputeJob:
    """A request to compute."""

    prompt: EncodedPrompt
    request: GenerationRequest


def compute(
    borrow_engine: Callable[[], AbstractContextManager[GenerationEngine]],
    jobs: Sequence[ComputeJob],
    on_outcome: OnOutcome,
) -> None:
    """Compute jobs together and report the outcome of each, once, by its index.

    Jobs the engine refuses get its reason. If it cannot be loaded or fails in between, jobs that
    were finished keep their answer and the others get the error.
    """
    unfinished = set(range(len(jobs)))

    def report(index: int, outcome: Outcome) -> None:
        on_outcome(index, outcome)
        unfinished.discard(index)

    try:
        with borrow_engine() as engine:
            _generate(engine, jobs, report)
    except Exception as error:
        log_unexpected(error)
        for index in sorted(unfinished):
            on_outcome(index, error)


def log_unexpected(error: Exception) -> None:
    """Log where an error came from, unless its message was written for the user to act on."""
    if not isinstance(error, FlexGenError):
        hexception(error)


def _generate(engine: GenerationEngine, jobs: Sequence[ComputeJob], report: OnOutcome) -> None:
    engine.generate(
        [job.request for job in jobs],
        on_result=lambda index, result: report(index, _respond(engine, jobs[index], result)),
        on_error=report,
    )


def _respond(engine: GenerationEngine, job: ComputeJob, result: GenerationResult) -> Response:
    return write_response(
        result,
        engine=engine.description,
        prompt=job.prompt,
        request_datetime=int(time.time()),
    )
