"""What storage of keys, or of values, can do, wherever it is.

Shape letters: b sequences, t cached positions, h heads, d head size, e model width, n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor

from flexgen_helm.model.cache_format import Rows
from flexgen_helm.model.row_cells import RowCells


class StorageSize(NamedTuple):
    """Positions of each slot."""

    num_prefilled: int
    """Written in prefill, at most."""

    num_later: int
    """Written after it, one at a time, at most."""

    capacity: int
    """t, of the longest at its end: no more than the other two together, as one slot may have
    much of the one and another much of the other."""


class CacheStorage(Protocol):
    """Holds [b, t] positions of keys, or of values."""

    @property
    def stored(self) -> CacheStorage:
        """What has all that was written so far, without a link in between."""

    def write(self, cells: RowCells, rows: Tensor) -> None:
        """Store those of the rows [n, e] that have a cell here."""

    def store(self, cells: RowCells, tensors: Sequence[Tensor]) -> None:
        """Store what the format makes of such rows, in the order of their cells."""

    def copy(self, start: int, source: Rows, slots: Tensor, length: int) -> None:
        """Store the first positions of some slots of another, in slots from `start` on."""

    def end_prefill(self) -> None:
        """Be told that from now on each sequence gets one position at a time."""

    def begin_read(self) -> int:
        """Begin what `read` will wait for; return the bytes of memory this takes."""

    def forget_read(self) -> None:
        """Give up the host's memory of what was begun to be read."""

    def read(self) -> AbstractContextManager[Rows]:
        """Lend all positions of all slots, [b, t] and what the format makes of a position.

        What lies beyond a sequence's own length is finite, and means nothing.
        """
