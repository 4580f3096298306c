"""Reads what coming turns need while others are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Turn = TypeVar("Turn")
"""What reads belong to: a turn of the schedule, or a part of it."""


class ReadAhead(Generic[Turn]):
    """Begins reads in the order of turns, as far ahead as there is memory for.

    The disk is asked in bursts: for the weights of a layer, then for little. One turn ahead would
    leave it idle between them.

    Args:
        turns: all there are, in the order in which they come.
        begin: begins the reads of a turn; returns the bytes of memory they take until it comes.
        most_bytes: of the turn that has come and those ahead together; but those of the next turn
            are always begun.
        most_turns: likewise, unless they take less than half of these bytes; `None` without limit.
    """

    def __init__(
        self,
        turns: Iterable[Turn],
        begin: Callable[[Turn], int],
        *,
        most_bytes: int,
        most_turns: int | None = None,
    ) -> None:
        self._turns = iter(turns)
        self._begin = begin
        self._most_bytes, self._most_turns = most_bytes, most_turns
        self._ahead: deque[int] = deque()
        """Bytes of each turn that is ahead and begun."""
        self._largest = 0
        """Bytes of a turn, at most, so far."""

    def advance(self) -> None:
        """Be told that a turn has come: what was read for it is in use."""
        if self._ahead:
            self._ahead.popleft()
        else:
            next(self._turns, None)  # the first: nothing was ahead of it
        while not self._ahead or self._has_room():
            turn = next(self._turns, None)
            if turn is None:
                break
            self._ahead.append(self._begin(turn))
            self._largest = max(self._largest, self._ahead[-1])

    def _has_room(self) -> bool:
        # The one that has come may be as large as any, and so may the one that would be begun.
        num_bytes, num_turns = sum(self._ahead) + 2 * self._largest, len(self._ahead) + 2
        few = self._most_turns is None or num_turns <= self._most_turns
        return num_bytes <= (self._most_bytes if few else self._most_bytes / 2)
