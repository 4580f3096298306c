"""Quantized numbers as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """Rows of numbers, quantized along the last dimension. Shape letter g: groups of a row."""

    codes: Tensor
    """Packed codes [..., g, group_size * bits / 8], uint8."""

    scale: Tensor
    """Step between neighbouring codes [..., g, 1], float16."""

    zero: Tensor
    """Value of code 0 [..., g, 1], float16."""

    bits: int
    group_size: int
    row_len: int
    """Numbers of a row; where it is no multiple of `group_size`, the last group is padded."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is stored."""
        return self.codes, self.scale, self.zero

    @property
    def num_bytes(self) -> int:
        """Bytes of what is stored."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    @property
    def num_padded(self) -> int:
        """Numbers it has, with the padding of the last groups."""
        return self.scale.numel() * self.group_size

    def map(self, function: Callable[[Tensor], Tensor]) -> QuantizedTensor:
        """Apply a function that keeps the last two dimensions (a slice, a copy) to all tensors."""
        return replace(
            self,
            codes=function(self.codes),
            scale=function(self.scale),
            zero=function(self.zero),
        )
