"""Bytes and times as people read them."""

from __future__ import annotations

import re

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_SIZE = re.compile(
    r"(?P<number>\d+(\.\d+)?) ?((?P<power>[kmgtp])(?P<binary>i)?b|b)?", re.IGNORECASE
)


def format_bytes(num_bytes: float) -> str:
    """Render a byte count with three significant digits: ``1234567`` -> ``"1.23 MB"``."""
    magnitude = abs(num_bytes)
    for unit in _BYTE_UNITS:
        if magnitude < 999.5 or unit == _BYTE_UNITS[-1]:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
        magnitude /= 1000
    raise AssertionError("unreachable: the last unit always returns")


def format_seconds(seconds: float) -> str:
    """Render a time with three significant digits: ``5400`` -> ``"1.5 hours"``."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def parse_bytes(text: str) -> int:
    """Read a byte count: ``"16GB"`` -> ``16000000000``, ``"1.5 GiB"``, ``"4096"``.

    Raises:
        ValueError: it is no such text.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("write a number and B, kB, MB, GB or TB, or KiB, MiB, GiB or TiB")
    power = "kmgtp".find(match["power"].lower()) + 1 if match["power"] else 0
    return round(float(match["number"]) * (1024 if match["binary"] else 1000) ** power)
