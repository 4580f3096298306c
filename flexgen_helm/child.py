"""What a process is given that this one starts."""

from __future__ import annotations

import os
import sys


def child_environment() -> dict[str, str]:
    """Return the environment in which Python imports from where this process does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
