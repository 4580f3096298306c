"""The form in which results are kept in HELM's request cache: plain values that JSON can hold.

A response carries the engine's description and the request's statistics, so that a run answered
from the cache can say what it cost when it was computed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flexgen_helm.adapter.prompts import EncodedPrompt
from flexgen_helm.specs.request import Completion, EngineDescription, GenerationResult
from flexgen_helm.specs.statistics import RequestStatistics

Response = dict[str, Any]


def write_response(
    result: GenerationResult,
    *,
    engine: EngineDescription,
    prompt: EncodedPrompt,
    request_datetime: int,
) -> Response:
    """Return a result as plain values.

    Args:
        result: what the engine answered.
        engine: which engine that was.
        prompt: what it was asked; its texts are kept with prompt log-probabilities.
        request_datetime: when, in seconds since the epoch.
    """
    scored = result.prompt_logprobs is not None
    return {
        "completions": [_plain(completion) for completion in result.completions],
        "prompt_logprobs": list(result.prompt_logprobs or ()) if scored else None,
        "prompt_texts": list(prompt.texts) if scored else None,
        "statistics": asdict(result.statistics),
        "engine": asdict(engine),
        "request_datetime": request_datetime,
    }


def read_response(response: Response) -> GenerationResult:
    """Turn plain values back into the result they were made of."""
    logprobs = response["prompt_logprobs"]
    return GenerationResult(
        completions=tuple(_completion(fields) for fields in response["completions"]),
        prompt_logprobs=None if logprobs is None else tuple(logprobs),
        statistics=read_statistics(response),
    )


def read_statistics(response: Response) -> RequestStatistics:
    """Return what the request cost when it was computed."""
    return RequestStatistics(**response["statistics"])


def read_engine(response: Response) -> EngineDescription:
    """Return which engine computed it."""
    return EngineDescription(**response["engine"])


def _plain(completion: Completion) -> dict[str, Any]:
    # asdict keeps tuples, which JSON would turn into lists: a round trip must change nothing.
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(completion).items()}


def _completion(fields: dict[str, Any]) -> Completion:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Completion(**values)
