"""Which rows of a micro-batch read which segments, in as few products as pay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

NO_SEGMENT = -1


class Reading(NamedTuple):
    """Rows of a micro-batch that attend to segments."""

    segments: tuple[int, ...]
    """One below another; read as if they were one."""

    rows: slice


def joined_readings(below: Mapping[int, slice], contexts: Sequence[int]) -> Iterator[Reading]:
    """Turn the rows below each segment into products, as few as pay.

    A segment that most readers of the one above it read, too, is read together with that one: it
    takes a copy of the keys and values above, and saves a product and its merging. The few other
    readers of the one above get a product of their own.
    """
    heirs: dict[int, int] = {}
    for segment, rows in below.items():
        above = contexts[segment]
        if above != NO_SEGMENT and 2 * _length(rows) > _length(below[above]):
            heirs[above] = segment
    joined: dict[int, tuple[int, ...]] = {}
    for segment, rows in below.items():
        above = contexts[segment]
        inherits = heirs.get(above) == segment
        joined[segment] = (*joined[above], segment) if inherits else (segment,)
        rest = [rows]
        if segment in heirs:
            heir = below[heirs[segment]]
            rest = [slice(rows.start, heir.start), slice(heir.stop, rows.stop)]
        yield from (Reading(joined[segment], part) for part in rest if _length(part))


def _length(rows: slice) -> int:
    return rows.stop - rows.start
