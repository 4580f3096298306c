"""Warnings of this package, and how a command shows them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FlexGenWarning(UserWarning):
    """Something is not as it was wanted, and goes on all the same."""


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print our warnings as one line each, without the place in the code they are from."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", FlexGenWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, FlexGenWarning):
                print(f"flexgen-helm: warning: {message}", file=sys.stderr)
            else:
                others(message, category, *place, **more)

        warnings.showwarning = show
        yield
