"""Checkpoints without weights: their tensors are made up when they are read.

How long a model takes does not depend on what its weights are, so the speed of one that nobody has
downloaded can be measured. A dummy is a directory with a `config.json`, a tokenizer, and
`dummy.json`, which has the seed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.files import write_text_atomically
from flexgen_helm.specs.checkpoint_files import side_files
from flexgen_helm.specs.opt_sizes import SIZES, config_of

DUMMY_FILE = "dummy.json"
INIT_STD = 0.02
"""Standard deviation of weights, as OPT's own were initialised with."""

BLOCK = 1 << 24
"""Random numbers, after which they repeat, in all tensors: drawing is slower than copying."""


def write_dummy(size: str, *, tokenizer: Path, directory: Path, seed: int = 0) -> Path:
    """Make a dummy checkpoint, and return its directory.

    Args:
        size: such as ``opt-30b``.
        tokenizer: directory with the files of OPT's tokenizer.
        directory: where to make it.
        seed: of the random weights.

    Raises:
        InvalidSettingError: there is no such size, or no tokenizer.
        OSError: the directory cannot be written.
    """
    name = size.removeprefix("opt-")
    if name not in SIZES:
        raise InvalidSettingError(
            f"there is no OPT of size {size!r}: choose one of opt-{', opt-'.join(SIZES)}"
        )
    return write_dummy_of(config_of(name), tokenizer=tokenizer, directory=directory, seed=seed)


def write_dummy_of(
    config: Mapping[str, Any], *, tokenizer: Path, directory: Path, seed: int = 0
) -> Path:
    """Make a dummy checkpoint of any shape, given as in its `config.json`; see `write_dummy`."""
    files = side_files(tokenizer)
    if not files:
        raise InvalidSettingError(f"{tokenizer} has no tokenizer: name a directory that has OPT's")
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, directory / file.name)
    write_text_atomically(directory / "config.json", json.dumps(config, indent=1))
    write_text_atomically(directory / DUMMY_FILE, json.dumps({"seed": seed}))
    return directory


class DummyReader:
    """Makes up the tensors of a dummy checkpoint; the same ones every time."""

    def __init__(self, path: Path) -> None:
        self._seed: int = json.loads((path / DUMMY_FILE).read_text())["seed"]

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor: norms are all ones, biases zeros, matrices random."""
        if len(shape) == 1:
            ones = name.endswith("norm.weight")
            return torch.full(shape, float(ones), dtype=torch.float16)
        tensor = torch.empty(shape, dtype=torch.float16)
        # Each begins somewhere else among the same numbers.
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        start = int.from_bytes(digest, "big") % len(self._numbers)
        left = tensor.view(-1)
        while len(left):
            numbers = self._numbers[start : start + len(left)]
            left[: len(numbers)] = numbers
            left, start = left[len(numbers) :], 0
        return tensor

    @cached_property
    def _numbers(self) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed)
        return torch.empty(BLOCK, dtype=torch.float16).normal_(0, INIT_STD, generator=generator)
