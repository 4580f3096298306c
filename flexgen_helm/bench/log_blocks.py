"""Durations of the blocks in HELM's log.

HELM writes ``Executor.execute {`` when a block begins, indents what is logged within by two blanks,
and ends with ``} [1m2.345s]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

EXECUTION = re.compile(r"Computing the requests of .*|(?!Annotation)\w*Executor\.execute")
"""Titles of blocks between having requests and having results: of our runner's own, and of HELM's
executor, in which HELM's client also loads its model, or a subclass of it."""

_LINE = re.compile(r"\S+ \S+ INFO {5}(?P<indent> *)(?P<text>.*)")
_END = re.compile(r"} \[(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?P<s>[\d.]+)s\]")


def block_seconds(log: Iterable[str], titles: re.Pattern[str]) -> list[float]:
    """Return the seconds of each block whose title matches and that is in no other such block.

    Args:
        log: lines of the log.
        titles: matched against whole titles.
    """
    return list(_outermost(log, titles))


def _outermost(log: Iterable[str], titles: re.Pattern[str]) -> Iterator[float]:
    entered: str | None = None
    for line in log:
        match = _LINE.fullmatch(line.rstrip("\n"))
        if match is None:  # a line of somebody else's, or a further one of a long message
            continue
        indent, text = match["indent"], match["text"]
        if entered is None:
            if text.endswith(" {") and titles.fullmatch(text.removesuffix(" {")):
                entered = indent
        elif indent == entered and (end := _END.fullmatch(text)):
            yield _seconds(end)
            entered = None


def _seconds(end: re.Match[str]) -> float:
    return 3600 * int(end["h"] or 0) + 60 * int(end["m"] or 0) + float(end["s"])
