"""Checkpoints on disk: finding them, telling them apart, reading them tensor by tensor.

Nothing here executes what a checkpoint contains: safetensors files hold no code, and pickled ones
are read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flexgen_helm.errors import CheckpointError
from flexgen_helm.model.dummy import DUMMY_FILE, DummyReader
from flexgen_helm.specs.checkpoint_files import SIDE_FILES, read_json, side_files
from flexgen_helm.specs.model import ModelSpec

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FINGERPRINT_BLOCKS = 64
_FINGERPRINT_BLOCK_BYTES = 2**20
_FINGERPRINT_LOCK = threading.Lock()


def resolve(model: str | os.PathLike[str]) -> Path:
    """Directory of a checkpoint named by path or hub id; a hub id is downloaded once.

    Raises:
        CheckpointError: there is no such directory, or the hub id is unknown or out of reach.
    """
    path = Path(model)
    if path.is_dir():
        return path
    name = str(model)
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise CheckpointError(
            f"checkpoint {name!r} is no directory here: give an existing directory, or a hub id"
            " such as 'facebook/opt-125m'"
        )
    return _from_hub(name)


def read_spec(path: Path) -> ModelSpec:
    """Architecture of the checkpoint in a directory.

    Raises:
        CheckpointError: `config.json` is missing or damaged.
        UnsupportedModelError: it is no OPT, OPT-IML or Galactica model.
    """
    return ModelSpec.from_config(read_json(path / "config.json"))


def fingerprint(path: Path) -> str:
    """Digest of a checkpoint's configuration, tokenizer and weights, without loading them.

    Weight files are sampled: their size and up to 64 evenly spaced MiB each, which covers files up
    to 64 MiB whole and makes a digest of a 60 GB checkpoint a matter of seconds; while the files
    stay as they are it is worked out once.
    """
    weights = [] if _is_dummy(path) else _weight_files(path)
    files = [*side_files(path), *weights]
    states = [(file, file.stat()) for file in files]
    with _FINGERPRINT_LOCK:  # or two who ask at once would both read the files
        return _digest(tuple((file, state.st_size, state.st_mtime_ns) for file, state in states))


@lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Digest of files, given with their sizes and when they were modified."""
    digest = hashlib.blake2b(digest_size=16)
    for file, size, _ in files:
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            for offset in _sample_offsets(size):
                stream.seek(offset)
                digest.update(stream.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()


def open_checkpoint(path: Path) -> CheckpointReader | DummyReader:
    """Return what reads the tensors of a checkpoint.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    return DummyReader(path) if _is_dummy(path) else CheckpointReader(path)


class CheckpointReader:
    """Reads tensors of a checkpoint one at a time.

    Names are those inside ``OPTForCausalLM`` without the leading ``model.``, which some
    checkpoints carry and some do not.

    Raises:
        CheckpointError: on construction and on `read`, where files or tensors are missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_of = _index(path)
        self._pickled: tuple[Path, Mapping[str, Tensor]] | None = None

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor, as stored, after checking its shape and that all of it is finite."""
        if name not in self._file_of:
            raise CheckpointError(
                f"tensor {name!r} is missing from the checkpoint {self._path}: it is incomplete,"
                " fetch or save it again"
            )
        file, stored_name = self._file_of[name]
        tensor = self._open(file, stored_name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"tensor {name!r} in {file} has shape {tuple(tensor.shape)}, config.json asks for"
                f" {shape}: the files belong to different models"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"tensor {name!r} in {file} has a NaN or an infinity: the checkpoint is damaged"
            )
        return tensor

    def _open(self, file: Path, stored_name: str) -> Tensor:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_tensor(stored_name)
        if self._pickled is None or self._pickled[0] != file:
            self._pickled = (file, _load_pickled(file))
        return self._pickled[1][stored_name]


def _is_dummy(path: Path) -> bool:
    return (path / DUMMY_FILE).is_file()


def _index(path: Path) -> dict[str, tuple[Path, str]]:
    """Canonical tensor name -> (file, name in that file)."""
    stored = [(file, name) for file in _weight_files(path) for name in _names_in(file)]
    return {_canonical(name): (file, name) for file, name in stored}


def _canonical(name: str) -> str:
    return name.removeprefix("model.")


def _names_in(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(_load_pickled(file))
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): fetch it again") from error


def _load_pickled(file: Path) -> Mapping[str, Tensor]:
    try:
        tensors: Mapping[str, Tensor] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=True
        )
    except Exception as error:  # torch raises half a dozen unrelated types here
        raise CheckpointError(
            f"{file} cannot be read as plain tensors ({error}): fetch it again, or convert it to"
            " safetensors where it is trusted"
        ) from error
    return tensors


def _weight_files(path: Path) -> list[Path]:
    """Weight files of a checkpoint, safetensors preferred, shards in the order of their names."""
    for single, index in (_SAFETENSORS, _PICKLED):
        if (path / index).is_file():
            return [_existing(path / name) for name in _shards(path / index)]
        if (path / single).is_file():
            return [path / single]
    raise CheckpointError(
        f"{path} holds no weights: expected {_SAFETENSORS[0]}, {_PICKLED[0]} or an index of shards"
    )


def _shards(index: Path) -> list[str]:
    """Names of the files in an index, none of which leads out of its directory."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map, which names the shards: fetch it again")
    return sorted({Path(str(file)).name for file in weight_map.values()})


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(f"shard {file} is missing: fetch the checkpoint again")
    return file


def _sample_offsets(size: int) -> list[int]:
    num_blocks = -(-size // _FINGERPRINT_BLOCK_BYTES)
    if num_blocks <= _FINGERPRINT_BLOCKS:
        return [block * _FINGERPRINT_BLOCK_BYTES for block in range(num_blocks)]
    last_offset = size - _FINGERPRINT_BLOCK_BYTES
    return [last_offset * i // (_FINGERPRINT_BLOCKS - 1) for i in range(_FINGERPRINT_BLOCKS)]


def _from_hub(hub_id: str) -> Path:
    """Snapshot of a hub repository: the one already here if it is whole, else a download.

    Pickled weights are fetched only where there are no others.
    """
    from huggingface_hub import snapshot_download

    reason: Exception | str = "it holds no weights torch can read"
    for local_only in (True, False):
        for weights in ("*.safetensors", "*.bin"):
            try:
                path = snapshot_download(
                    hub_id, allow_patterns=[*SIDE_FILES, weights], local_files_only=local_only
                )
            except Exception as error:  # not here, unknown repository, no network, no token ...
                reason = error
                break
            if _has_all_weights(Path(path)):
                return Path(path)
    raise CheckpointError(
        f"checkpoint {hub_id!r} cannot be had from the hub ({reason}): check the name and the"
        " network, or give a local directory"
    )


def _has_all_weights(path: Path) -> bool:
    try:
        return bool(_weight_files(path))
    except CheckpointError:
        return False
