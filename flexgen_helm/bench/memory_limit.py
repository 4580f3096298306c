"""A limit on the memory of a process that counts the page cache: a control group of Linux.

Without one, software that maps a checkpoint into memory keeps in the page cache what it is said to
read from disk.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CONTROL_GROUPS = Path("/sys/fs/cgroup")


class _Files(NamedTuple):
    """Names of the files of a group, which differ between the versions of control groups."""

    limit: str
    peak: str


_VERSION_1 = _Files("memory.limit_in_bytes", "memory.max_usage_in_bytes")
_VERSION_2 = _Files("memory.max", "memory.peak")


class MemoryLimit:
    """A control group whose processes together have so many bytes, page cache included."""

    def __init__(self, directory: Path, files: _Files) -> None:
        self.directory = directory
        self._files = files

    @property
    def peak_bytes(self) -> int | None:
        """Most that was ever used; `None` where the kernel does not tell."""
        try:
            return int((self.directory / self._files.peak).read_text())
        except OSError:
            return None

    @classmethod
    @contextmanager
    def make(cls, num_bytes: int, *, root: Path = CONTROL_GROUPS) -> Iterator[MemoryLimit | None]:
        """Make a group, and remove it afterwards; `None` where this process may make none."""
        version_1 = root / "memory"
        parent, files = (version_1, _VERSION_1) if version_1.is_dir() else (root, _VERSION_2)
        directory = parent / f"flexgen_helm-{uuid.uuid4().hex[:12]}"
        try:
            directory.mkdir()
        except OSError:
            yield None
            return
        try:
            try:
                (directory / files.limit).write_text(str(num_bytes))
            except OSError:  # of version 2, and memory is not among what the parent hands on
                yield None
                return
            yield cls(directory, files)
        finally:
            directory.rmdir()


def join(directory: Path) -> None:
    """Put this process, and what it will start, into a group."""
    (directory / "cgroup.procs").write_text(str(os.getpid()))


def forget_pages(directory: Path) -> None:
    """Have the page cache forget the files of a directory.

    What it holds counts for the process that read it first, so a limited one would have it free.
    """
    for path in directory.iterdir():
        if path.is_file() and hasattr(os, "posix_fadvise"):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)  # what is not written yet cannot be forgotten
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
