"""How often Python looks for garbage that only a search can find."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = 100_000
"""Objects made between two searches. Python's default is 700, and every search of the oldest goes
through all of them: a fifth of HELM's time, which makes millions of objects that live to the end
and next to none that need a search."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Search for garbage rarely. For code that makes objects; tensors are freed without search."""
    saved = gc.get_threshold()
    gc.set_threshold(RARELY, *saved[1:])
    try:
        yield
    finally:
        gc.set_threshold(*saved)
