"""Numbers to codes, side by side or where they belong in a cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.specs.compression import KERNEL_BITS

GROUPS_AT_ONCE = 16
"""Of a row."""

HALVES_ROUNDED = 12582912.0
"""1.5 * 2**23: added to a small number and subtracted again, it leaves the nearest whole number,
the even one of two."""

LARGEST_HALF = 65504.0
"""The largest number of float16."""


def quantize(rows: Tensor, group_size: int) -> QuantizedTensor:
    """See `kernels.quantize`."""
    num_rows, row_len = rows.shape
    num_groups, half = row_len // group_size, group_size // 2
    codes = torch.empty(num_rows, num_groups, half, dtype=torch.uint8, device=rows.device)
    scale = torch.empty(num_rows, num_groups, 1, dtype=torch.float16, device=rows.device)
    quantized = QuantizedTensor(
        codes=codes,
        scale=scale,
        zero=torch.empty_like(scale),
        bits=KERNEL_BITS,
        group_size=group_size,
        row_len=row_len,
    )
    _launch(quantized, rows, None)
    return quantized


def quantize_into(room: QuantizedTensor, rows: Tensor, slots: Tensor, positions: Tensor) -> None:
    """See `kernels.quantize_into`."""
    assert all(tensor.is_contiguous() for tensor in room.tensors), "a room has no gaps"
    _launch(room, rows, (slots.contiguous(), positions.contiguous()))


def _launch(out: QuantizedTensor, rows: Tensor, cells: tuple[Tensor, Tensor] | None) -> None:
    """Quantize rows one after another, or into cells [b, t] of `out`."""
    assert rows.stride(1) == 1, "numbers of a row stand side by side"
    num_groups = out.row_len // out.group_size
    slots, positions = cells or (rows, rows)
    _quantize[(len(rows), triton.cdiv(num_groups, GROUPS_AT_ONCE))](
        rows,
        slots,
        positions,
        out.codes,
        out.scale,
        out.zero,
        rows.stride(0),
        out.codes.shape[1],
        num_groups,
        out.group_size // 2,
        GROUPS_AT_ONCE,
        cells is not None,
        HALVES_ROUNDED,
        LARGEST_HALF,
    )


@triton.jit(do_not_specialize=["num_positions"])  # it has many: else it would be compiled again
def _quantize(
    rows, slots, positions, codes, scale, zero, row_stride, num_positions, num_groups,
    HALF: tl.constexpr, GROUPS: tl.constexpr, IN_CELLS: tl.constexpr, ROUNDED: tl.constexpr,
    LARGEST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    cell = row
    if IN_CELLS:
        cell = tl.load(slots + row) * num_positions + tl.load(positions + row)
    place = cell * num_groups + group
    there = group < num_groups
    both, column = there[:, None], tl.arange(0, HALF)
    source = rows + row * row_stride + group[:, None] * (2 * HALF) + column
    first = tl.load(source, mask=both, other=0).to(tl.float32)
    last = tl.load(source + HALF, mask=both, other=0).to(tl.float32)
    least = tl.min(tl.minimum(first, last), axis=1)
    largest = tl.max(tl.maximum(first, last), axis=1)
    stored_zero = least.to(tl.float16)
    low = stored_zero.to(tl.float32)
    stored_scale = tl.maximum(tl.math.div_rn(largest - low, 15.0), 0.0).to(tl.float16)
    step = stored_scale.to(tl.float32)
    # A NaN, an infinity and what float16 cannot hold: the group comes back as NaN.
    strange = tl.max(((first != first) | (last != last)).to(tl.int32), axis=1)
    fine = (tl.abs(low) <= LARGEST) & (step <= LARGEST) & (strange == 0)
    tl.store(scale + place, tl.where(fine, stored_scale, float("nan")), mask=there)
    tl.store(zero + place, stored_zero, mask=there)
    fine, low = fine[:, None], low[:, None]
    divisor = tl.where(fine & (step[:, None] > 0), step[:, None], 1.0)
    first = tl.where(fine, tl.math.div_rn(first - low, divisor), 0.0)
    last = tl.where(fine, tl.math.div_rn(last - low, divisor), 0.0)
    first = tl.minimum(tl.maximum(first + ROUNDED - ROUNDED, 0.0), 15.0).to(tl.uint8)
    last = tl.minimum(tl.maximum(last + ROUNDED - ROUNDED, 0.0), 15.0).to(tl.uint8)
    tl.store(codes + place[:, None] * HALF + column, first | (last << 4), mask=both)
