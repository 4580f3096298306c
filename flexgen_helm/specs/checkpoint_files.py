"""The files of a checkpoint beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flexgen_helm.errors import CheckpointError

SIDE_FILES = ("*.json", "*.txt", "*.model")
"""What configurations and tokenizers are in."""


def side_files(directory: Path) -> list[Path]:
    """Return a checkpoint's configuration and what its tokenizer is made from, always in order."""
    return [file for pattern in SIDE_FILES for file in sorted(directory.glob(pattern))]


def fetched_file(hub_id: str, name: str) -> Path | None:
    """Return a file of a checkpoint of the hub, if it has been fetched before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) else None


def is_fetched(hub_id: str) -> bool:
    """Whether any configuration of a checkpoint or tokenizer of the hub has been fetched before."""
    return any(fetched_file(hub_id, name) for name in ("config.json", "tokenizer_config.json"))


def is_hub_id(checkpoint: str) -> bool:
    """Whether a checkpoint that is no directory here may be one of the hub."""
    return checkpoint.count("/") == 1 and not checkpoint.startswith(("/", "."))


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a file.

    Raises:
        CheckpointError: there is no such file, or it is damaged or cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is missing: {file.parent} is not a checkpoint directory"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error}): fetch it again") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is no valid JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object: fetch it again")
    return content
