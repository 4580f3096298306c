"""What a command writes to where the user says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexgen_helm.errors import InvalidSettingError


@contextmanager
def writing(path: Path, option: str) -> Iterator[None]:
    """Whatever keeps a file from being written is one error that names the option it came from.

    Raises:
        InvalidSettingError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InvalidSettingError(
            f"{path} cannot be written ({error.strerror or error}): choose another {option}"
        ) from error
