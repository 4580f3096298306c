"""One progress bar for all deployments of a suite."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class SuiteProgress:
    """Counts requests as they are computed, and tells how long the rest will take.

    Args:
        requests: by deployment, in the order in which they are computed. What turns out to be known
            already does not count, so the time left is an upper estimate until the last one begins.
    """

    def __init__(self, requests: Mapping[str, int]) -> None:
        self._expected = dict(requests)
        self._begun = 0
        self._total = sum(requests.values())
        self._bar: tqdm[Any] | None = None

    def begin(self, deployment: str, to_compute: int) -> None:
        """Be told how many requests of a deployment have to be computed."""
        self._begun += 1
        self._total += to_compute - self._expected.get(deployment, 0)
        number = f" ({self._begun} of {len(self._expected)})" if len(self._expected) > 1 else ""
        if self._bar is not None:
            self._bar.total = self._total
            self._bar.set_description(deployment + number)
        elif to_compute:
            self._bar = tqdm(
                total=self._total,
                desc=deployment + number,
                unit="request",
                mininterval=0.5 if sys.stderr.isatty() else 30,  # in a log, a line now and then
                file=sys.stderr,
            )

    def update(self) -> None:
        """Be told that a request has been computed."""
        if self._bar is not None:
            self._bar.update()

    def __enter__(self) -> SuiteProgress:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
