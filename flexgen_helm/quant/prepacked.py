"""4-bit weights in the order in which a processor multiplies few rows with them as they are.

PyTorch has a product of bfloat16 rows with 4-bit codes (`_weight_int4pack_mm_for_cpu`) that reads a
quarter of the bytes and computes nothing beforehand, but codes must be in an order of its own. In
this order they are dequantized almost as fast as in that of `QuantizedTensor`, so that weights that
stay in memory are kept in it alone. On disk they are as they were: they are brought into the order
when they are loaded.

Shape letters: n rows, i inputs, o outputs, k tiles of outputs, g groups of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from flexgen_helm.quant.packing import unpack
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.specs.chunks import DEQUANTIZED_AT_ONCE
from flexgen_helm.specs.compression import KERNEL_BITS, processors_read

MOST_ROWS, MOST_ROWS_BESIDE_MATRIX_UNITS = 64, 32
"""Rows of a pass up to which weights are not dequantized, where it was not measured how many that
should be (`planner.rates`). Each row takes the product longer than
one with dequantized weights: with one row it is ten times as fast as both, with 64 one and a half
times, with 128 a sixth faster, on a processor of which that was measured. On those that multiply
16-bit numbers faster, above all with matrix units, it ends earlier, by estimate."""

TILE = 64
"""Outputs whose codes stand together."""

CODES = (1 << KERNEL_BITS) - 1
MIDDLE = 1 << KERNEL_BITS - 1
"""The code whose value PyTorch wants to know, where we store that of code 0."""


@dataclass(frozen=True, kw_only=True)
class PrepackedTensor:
    """A weight [o, i]."""

    codes: Tensor
    """[k, i, 32], uint8: those of the first half of a tile in low bits, of the second in high."""

    steps: Tensor
    """[g, o, 2], float16: what lies between two neighbouring codes, and the value of code 0."""

    @property
    def num_bytes(self) -> int:
        """Bytes of what is stored."""
        return self.codes.nbytes + self.steps.nbytes

    @property
    def num_padded(self) -> int:
        """Numbers it has; there is no padding."""
        return 2 * self.codes.numel()

    @property
    def num_inputs(self) -> int:
        return self.codes.shape[1]

    @property
    def num_outputs(self) -> int:
        return self.steps.shape[1]

    @property
    def group_size(self) -> int:
        return self.num_inputs // len(self.steps)


StoredTensor = Tensor | QuantizedTensor | PrepackedTensor
"""A tensor as it is stored."""


def can_prepack(weight: QuantizedTensor, dtype: torch.dtype) -> bool:
    """Whether this processor multiplies rows of a dtype with this weight as it is stored."""
    return (
        weight.codes.is_cpu
        and reads(weight.bits, weight.group_size, dtype)
        and len(weight.codes) % TILE == 0
        and weight.row_len % weight.group_size == 0
    )


def few_rows(bits: int | None, group_size: int, dtype: torch.dtype) -> int:
    """Rows up to which a processor should multiply with codes as they are; 0 if this one cannot.

    An estimate for those that were not calibrated.
    """
    if not reads(bits, group_size, dtype):
        return 0
    has_units = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return MOST_ROWS_BESIDE_MATRIX_UNITS if has_units else MOST_ROWS


def reads(bits: int | None, group_size: int, dtype: torch.dtype) -> bool:
    """Whether this processor multiplies rows of a dtype with such codes."""
    # In float32 PyTorch's product takes a hundred times as long.
    possible = processors_read(bits, group_size) and dtype is torch.bfloat16
    return possible and _is_in_our_order()


def prepack(weight: QuantizedTensor) -> PrepackedTensor:
    """Bring a weight [o, i] into the other order."""
    num_outputs, num_inputs = len(weight.codes), weight.row_len
    codes = weight.codes.new_empty(num_outputs // TILE, num_inputs, TILE // 2)
    tiles = _tiles_at_once(num_inputs)
    for made, packed in zip(codes.split(tiles), weight.codes.split(tiles * TILE), strict=True):
        groups = packed.new_empty(*packed.shape[:2], weight.group_size)
        rows = unpack(packed, KERNEL_BITS, groups).view(len(made), 2, TILE // 2, num_inputs)
        low, high = rows.transpose(2, 3).unbind(1)
        torch.bitwise_left_shift(high, KERNEL_BITS, out=made)
        made |= low
    steps = torch.cat([weight.scale, weight.zero], dim=-1).transpose(0, 1).contiguous()
    return PrepackedTensor(codes=codes, steps=steps)


def dequantize(weight: PrepackedTensor, buffer: Tensor) -> Tensor:
    """Return the numbers [o, i] that codes stand for, the same as those of the other order.

    Args:
        weight: the codes.
        buffer: [`num_padded`] numbers, in the dtype that is wanted, whose memory the result has: by
            inputs, so that it is not contiguous.
    """
    num_groups, group_size = len(weight.steps), weight.group_size
    numbers = buffer.view(num_groups, group_size, weight.num_outputs)
    scale, zero = weight.steps.float().permute(2, 0, 1).unsqueeze(2)
    codes = weight.codes.view(-1, num_groups, group_size, TILE // 2)
    at_once = max(1, DEQUANTIZED_AT_ONCE // numbers[0].numel())
    # Codes in the order they are in, numbers in that of the result: both in long runs.
    scratch = codes.new_empty(len(codes), at_once, *codes.shape[2:])
    halves = torch.empty(at_once, group_size, len(codes), 2, TILE // 2)
    for start in range(0, num_groups, at_once):
        chunk = slice(start, start + at_once)
        packed, target = codes[:, chunk], numbers[chunk]
        part, values = scratch[:, : len(target)], halves[: len(target)]
        torch.bitwise_and(packed, CODES, out=part)
        values[..., 0, :] = part.permute(1, 2, 0, 3)
        torch.bitwise_right_shift(packed, KERNEL_BITS, out=part)
        values[..., 1, :] = part.permute(1, 2, 0, 3)
        rows = values.view_as(target)
        target.copy_(torch.addcmul(zero[chunk], rows, scale[chunk], out=rows))
    return buffer.view(-1, weight.num_outputs).t()


def multiply(rows: Tensor, weight: PrepackedTensor, bias: Tensor | None) -> Tensor:
    """Return rows @ weight.T + bias, [n, i] -> [n, o].

    Args:
        rows: [n, i], bfloat16; see `few_rows`.
        weight: [o, i].
        bias: [o], if any.
    """
    middles = weight.steps.float()
    middles[..., 1] += MIDDLE * middles[..., 0]
    product = torch.ops.aten._weight_int4pack_mm_for_cpu(
        rows.contiguous(),
        weight.codes.view(weight.num_outputs, -1),
        weight.group_size,
        middles.to(rows.dtype),
    )
    return product if bias is None else product.add_(bias)


def _tiles_at_once(num_inputs: int) -> int:
    return max(1, DEQUANTIZED_AT_ONCE // (num_inputs * TILE))


@lru_cache(maxsize=1)
def _is_in_our_order() -> bool:
    """Whether PyTorch has the product, and reads codes in our order; for AVX2 it has another."""
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return False
    group_size = 32
    codes = torch.arange(2 * TILE * group_size // 2).to(torch.uint8).view(2, group_size, TILE // 2)
    steps = torch.tensor([1.0, -MIDDLE]).half().expand(1, 2 * TILE, 2).contiguous()
    weight = PrepackedTensor(codes=codes, steps=steps)
    rows = torch.eye(group_size, dtype=torch.bfloat16)
    try:
        product = multiply(rows, weight, None)
    except RuntimeError:
        return False
    buffer = torch.empty(weight.num_padded, dtype=torch.bfloat16)
    return torch.equal(product, dequantize(weight, buffer).t())
