"""Records: tensors one after another in bytes that the disk can be asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from flexgen_helm.offload.disk import aligned_up

TENSOR_ALIGNMENT = 64
"""Tensors of a record begin at multiples of a cache line."""


@dataclass(frozen=True)
class TensorLayout:
    """What there is to know about a tensor in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class RecordLayout:
    """Tensors one after another in bytes; the record ends at a multiple of `ALIGNMENT`."""

    def __init__(self, tensors: Sequence[TensorLayout]) -> None:
        self._tensors = tensors
        self._offsets = []
        end = 0
        for tensor in tensors:
            self._offsets.append(end)
            end += -(-tensor.num_bytes // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
        self.num_bytes = aligned_up(end)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> RecordLayout:
        """Return that of given tensors."""
        return cls([TensorLayout(tensor.dtype, tuple(tensor.shape)) for tensor in tensors])

    def views(self, record: Tensor) -> list[Tensor]:
        """Return the tensors in a record's bytes, sharing their memory."""
        return [
            record[offset : offset + tensor.num_bytes].view(tensor.dtype).view(tensor.shape)
            for tensor, offset in zip(self._tensors, self._offsets, strict=True)
        ]

    def stacked(self, records: Tensor) -> list[Tensor]:
        """Return those in the bytes of consecutive records, each with these in front [k, ...]."""
        by_record = records.view(-1, self.num_bytes)
        return [
            by_record[:, offset : offset + tensor.num_bytes]
            .view(tensor.dtype)
            .view(len(by_record), *tensor.shape)
            for tensor, offset in zip(self._tensors, self._offsets, strict=True)
        ]


class Records:
    """Records in memory, one after another: the tensors of each, which share the memory."""

    def __init__(self, layouts: Sequence[RecordLayout], memory: Tensor) -> None:
        self._layouts, self._memory = layouts, memory
        self._bounds = [*accumulate((layout.num_bytes for layout in layouts), initial=0)]

    def __len__(self) -> int:
        return len(self._layouts)

    def __iter__(self) -> Iterator[list[Tensor]]:
        return self.until(len(self))

    def until(self, stop: int) -> Iterator[list[Tensor]]:
        """Return the first so many."""
        for layout, (start, end) in zip(self._layouts[:stop], pairwise(self._bounds), strict=False):
            yield layout.views(self._memory[start:end])

    def stacked(self, start: int) -> list[Tensor]:
        """Return the tensors of all from `start` on, [k, ...]; their layout is the same."""
        return self._layouts[start].stacked(self._memory[self._bounds[start] : self._bounds[-1]])
