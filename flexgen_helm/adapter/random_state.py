"""The global random generators, which HELM's scenarios and metrics draw from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """Where Python's and numpy's generators stand; equal states draw equal numbers."""

    python: tuple[Any, ...]
    """What `random.getstate` returns."""

    numpy: tuple[Any, ...]
    """What `numpy.random.get_state` returns, its array as bytes, which can be compared."""

    @classmethod
    def current(cls) -> RandomState:
        """Return where they stand."""
        name, keys, *rest = np.random.get_state(legacy=True)
        return cls(python=random.getstate(), numpy=(name, np.asarray(keys).tobytes(), *rest))

    def restore(self) -> None:
        """Put them there again."""
        name, keys, *rest = self.numpy
        random.setstate(self.python)
        np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))
