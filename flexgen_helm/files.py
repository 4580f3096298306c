"""Writing files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file under another name beside `path`, then give it that name.

    Readers see the old content or the new, never a part, also after the machine has failed; if
    `write` fails, the old stays.

    Raises:
        OSError: the directory cannot be made or written to.
    """
    # Threads may write the same file at the same time, as two engines make a store they share.
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())  # or the name may be on the disk before the content is
        temporary.replace(path)
    finally:
        with suppress(OSError):  # its directory may not even be there
            temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file as `write_atomically` does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def delete_abandoned(directory: Path) -> None:
    """Delete what `write_atomically` has left in a directory where its process was killed."""
    for temporary in directory.glob(".*.*.tmp"):
        _, _, pid = temporary.stem.rpartition(".")
        if pid.isdecimal() and not _lives(int(pid)):
            temporary.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # is not sent
    except PermissionError:  # somebody else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def check_writable(path: Path) -> None:
    """Make the directory of a file, and see whether it could be written, before it is worth it.

    Raises:
        OSError: it could not.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=path.parent):
        pass
