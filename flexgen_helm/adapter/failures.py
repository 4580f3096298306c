"""Which runs failed, and why, as the end of HELM's log has it for whoever started `helm-run`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from flexgen_helm.errors import FlexGenError

_MARK = "Failed run "
_LINE = re.compile(rf"\S+ \S+ INFO +{_MARK}(?P<failure>.*)")

_REQUEST = " Request: Request("
"""Behind this HELM's executor has the whole request."""


def failure_text(run: str, error: Exception) -> str:
    """Return a run's name and the reason why it failed, as a line of the log."""
    reason = " ".join(str(error).partition(_REQUEST)[0].split())
    named = isinstance(error, FlexGenError) or _REQUEST in str(error)
    return f"{_MARK}{run}: {reason if named else f'{type(error).__name__}: {reason}'}"


def failures_in(log: Iterable[str]) -> list[str]:
    """Return the names and the reasons in lines of the log."""
    matches = (_LINE.fullmatch(line.rstrip("\n")) for line in log)
    return [match["failure"] for match in matches if match is not None]
