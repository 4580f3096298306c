"""A checkpoint's tokenizer, loaded once for all who ask."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from flexgen_helm.errors import CheckpointError
from flexgen_helm.specs.checkpoint_files import side_files

_LOCK = threading.Lock()
_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def checkpoint_tokenizer(path: Path) -> Any:
    """Return the transformers tokenizer of a checkpoint's directory.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    # Without this check transformers would make an empty tokenizer from config.json alone.
    if not any((path / name).is_file() for name in _FILES):
        raise CheckpointError(
            f"{path} has no tokenizer: put one of {', '.join(_FILES)} (and what belongs to it)"
            " beside config.json"
        )
    try:
        return local_tokenizer(str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the tokenizer in {path} cannot be read ({error}): fetch it again"
        ) from error


def local_tokenizer(source: str) -> Any:
    """Return the transformers tokenizer of a directory, or of a hub id that is here already.

    Loading one takes a third of a second. It is loaded again when its files have changed.

    Raises:
        OSError: it is not here.
    """
    modified = tuple(file.stat().st_mtime_ns for file in side_files(Path(source)))
    with _LOCK:  # or two who ask at once would both load it
        return _load(source, modified)


@lru_cache(maxsize=2)
def _load(source: str, _modified: tuple[int, ...]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, local_files_only=True)
