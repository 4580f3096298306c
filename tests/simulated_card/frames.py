"""Where the package is in what it does."""

import sys
from pathlib import Path

import flexgen_helm

PACKAGE = str(Path(flexgen_helm.__file__).parent)


def where():
    """The innermost lines of the package that are being executed."""
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < 4:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            lines.append(f"{path[len(PACKAGE) + 1 :]}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines) or "the test"
