"""Numbers to codes, where they belong in a cache."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flexgen_helm.quant.tensor import QuantizedTensor

HALVES_ROUNDED = 12582912.0
"""1.5 * 2**23: added to a small number and subtracted again, it leaves the nearest whole number,
the even one of two."""

LARGEST_HALF = 65504.0
"""The largest number of float16."""


def quantize_into(room: QuantizedTensor, rows: Tensor, slots: Tensor, positions: Tensor) -> None:
    """See `kernels.quantize_into`."""
    num_positions, num_groups = room.scale.shape[1:3]
    assert rows.stride(1) == 1, "numbers of a row stand side by side"
    assert all(tensor.is_contiguous() for tensor in room.tensors), "and so do those of a room"
    _quantize[(len(rows), num_groups)](
        rows,
        slots.contiguous(),
        positions.contiguous(),
        room.codes,
        room.scale,
        room.zero,
        rows.stride(0),
        num_positions,
        num_groups,
        room.group_size // 2,
        HALVES_ROUNDED,
        LARGEST_HALF,
    )


@triton.jit
def _quantize(
    rows, slots, positions, codes, scale, zero, row_stride, num_positions, num_groups,
    HALF: tl.constexpr, ROUNDED: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cell = tl.load(slots + row) * num_positions + tl.load(positions + row)
    place = cell * num_groups + group
    column = tl.arange(0, HALF)
    source = rows + row * row_stride + group * (2 * HALF) + column
    first = tl.load(source).to(tl.float32)
    last = tl.load(source + HALF).to(tl.float32)
    least = tl.min(tl.minimum(first, last), axis=0)
    largest = tl.max(tl.maximum(first, last), axis=0)
    stored_zero = least.to(tl.float16)
    low = stored_zero.to(tl.float32)
    stored_scale = tl.maximum(tl.math.div_rn(largest - low, 15.0), 0.0).to(tl.float16)
    step = stored_scale.to(tl.float32)
    # A NaN, an infinity and what float16 cannot hold: the group comes back as NaN.
    strange = tl.max(((first != first) | (last != last)).to(tl.int32), axis=0)
    fine = (tl.abs(low) <= LARGEST) & (step <= LARGEST) & (strange == 0)
    stored_scale = tl.where(fine, stored_scale, float("nan"))
    divisor = tl.where(fine & (step > 0), step, 1.0)
    first = tl.where(fine, tl.math.div_rn(first - low, divisor), 0.0)
    last = tl.where(fine, tl.math.div_rn(last - low, divisor), 0.0)
    first = tl.minimum(tl.maximum(first + ROUNDED - ROUNDED, 0.0), 15.0).to(tl.uint8)
    last = tl.minimum(tl.maximum(last + ROUNDED - ROUNDED, 0.0), 15.0).to(tl.uint8)
    tl.store(codes + place * HALF + column, first | (last << 4))
    tl.store(scale + place, stored_scale)
    tl.store(zero + place, stored_zero)
