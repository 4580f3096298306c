"""From a checkpoint to a weight store, in bounded memory whatever the checkpoint's size."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from flexgen_helm.errors import DiskFullError, StoreError
from flexgen_helm.files import delete_abandoned, write_atomically
from flexgen_helm.model.parts import PartTensor, TensorSource, parts
from flexgen_helm.offload.part_file import Entry, PartFile, PartWriter
from flexgen_helm.offload.store import (
    COMPONENTS,
    StoreIdentity,
    WeightStore,
    part_path,
    quantized_entries,
    write_manifest,
)
from flexgen_helm.quant.quantize import quantize
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.units import format_bytes

CONVERTED_BESIDE = 4
"""Parts that are converted at the same time where a GPU quantizes."""

CONVERTED_AT_ONCE = 1 << 22
"""Numbers converted at once; quantization takes some ten times their bytes on the way."""


def convert(
    source: TensorSource,
    spec: ModelSpec,
    identity: StoreIdentity,
    *,
    dtype: torch.dtype,
    directory: Path,
    device: torch.device,
    on_part: Callable[[], object] = lambda: None,
) -> WeightStore:
    """Make a weight store, tensor by tensor; parts of an interrupted conversion are kept.

    Args:
        source: the checkpoint.
        spec: its architecture.
        identity: what the store is made from and how.
        dtype: of what is not quantized.
        directory: where the store will be.
        device: what quantizes.
        on_part: called after each of the `num_layers + 1` parts, for progress.

    Raises:
        CheckpointError: a tensor is missing, damaged or of another shape than the spec says.
        StoreError: the directory cannot be written, or has a store of something else.
        DiskFullError: its disk has no room for the store.
    """
    if not WeightStore.is_whole(directory):
        all_parts = parts(spec)
        entries = {
            name: {k: v for t in tensors for k, v in _entries(t, identity, dtype).items()}
            for name, tensors in all_parts.items()
            if not _is_converted(part_path(directory, name), identity)
        }
        _require_room(
            directory, sum(e.num_bytes for part in entries.values() for e in part.values())
        )

        def convert_part(name: str) -> None:
            if name in entries:  # else it is from a conversion that was interrupted later on
                path = part_path(directory, name)
                _convert_part(source, all_parts[name], entries[name], identity, dtype, device, path)

        with ThreadPoolExecutor(CONVERTED_BESIDE) as threads:
            # A processor has enough to do with one part.
            each = map if device.type == "cpu" else threads.map
            for _ in each(convert_part, all_parts):
                on_part()
        row_lens = {t.name: t.shape[1] for part in all_parts.values() for t in part if t.linear}
        write_manifest(directory, identity, parts=all_parts, row_lens=row_lens)
        delete_abandoned(directory)
    return WeightStore(directory, identity)


def _is_converted(path: Path, identity: StoreIdentity) -> bool:
    with suppress(StoreError):
        return PartFile.open(path).identity == identity.text
    return False


def _require_room(directory: Path, num_bytes: int) -> None:
    """Refuse what the disk has no room for before hours are spent on it."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise DiskFullError(
            f"the store takes {format_bytes(num_bytes)} more, and {format_bytes(free)} are free"
            f" where {directory} is to be: name another --offload-dir, or compress weights"
            " (--weight-bits 4)"
        )


def _convert_part(
    source: TensorSource,
    tensors: list[PartTensor],
    entries: dict[str, Entry],
    identity: StoreIdentity,
    dtype: torch.dtype,
    device: torch.device,
    path: Path,
) -> None:
    def write(temporary: Path) -> None:
        with PartWriter(temporary, entries, identity.text) as file:
            for tensor in tensors:
                for rows in _rows(source, tensor):
                    _write_rows(file, tensor, rows.to(dtype), identity, device)

    try:
        write_atomically(path, write)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error}): name another --offload-dir, with room for the"
            " whole store"
        ) from error


def _entries(tensor: PartTensor, identity: StoreIdentity, dtype: torch.dtype) -> dict[str, Entry]:
    if not tensor.linear or identity.weight_bits is None:
        return {tensor.name: Entry(dtype, tensor.stacked_shape)}
    return quantized_entries(
        tensor.name,
        tensor.stacked_shape,
        bits=identity.weight_bits,
        group_size=identity.group_size,
    )


def _rows(source: TensorSource, tensor: PartTensor) -> Iterator[Tensor]:
    """Rows of a tensor, a few at a time."""
    step = max(1, CONVERTED_AT_ONCE // (tensor.shape[1] if len(tensor.shape) > 1 else 1))
    for name in tensor.sources:
        yield from source.read(name, tensor.shape).split(step)


def _write_rows(
    file: PartWriter,
    tensor: PartTensor,
    rows: Tensor,
    identity: StoreIdentity,
    device: torch.device,
) -> None:
    if not tensor.linear or identity.weight_bits is None:
        file.write(tensor.name, rows)
        return
    bits, group_size = identity.weight_bits, identity.group_size
    quantized = quantize(rows.to(device), bits=bits, group_size=group_size)
    for component, part in zip(COMPONENTS, quantized.tensors, strict=True):
        file.write(f"{tensor.name}.{component}", part.cpu())
