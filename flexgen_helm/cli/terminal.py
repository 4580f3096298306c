"""The terminal that tables are printed to."""

from __future__ import annotations

import shutil
import sys


def terminal_width() -> int | None:
    """Return how many characters fit into a line; `None` where output goes somewhere else."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
