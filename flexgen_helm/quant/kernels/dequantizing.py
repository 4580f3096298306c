"""Codes to numbers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flexgen_helm.quant.tensor import QuantizedTensor

GROUPS_AT_ONCE = 64


def dequantize_into(buffer: Tensor, tensor: QuantizedTensor) -> Tensor:
    """See `kernels.dequantize_into`."""
    codes, scale, zero = (x.contiguous() for x in tensor.tensors)
    num_groups = scale.numel()
    _dequantize[(triton.cdiv(num_groups, GROUPS_AT_ONCE),)](
        codes, scale, zero, buffer, num_groups, tensor.group_size // 2, GROUPS_AT_ONCE
    )
    return buffer


@triton.jit
def _dequantize(
    codes, scale, zero, out, num_groups, HALF: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    groups = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    there = groups < num_groups
    column = tl.arange(0, HALF)
    # The low halves of a group's bytes are its first codes, the high halves its last.
    both = tl.load(codes + groups[:, None] * HALF + column, mask=there[:, None], other=0)
    step = tl.load(scale + groups, mask=there, other=0).to(tl.float32)[:, None]
    low = tl.load(zero + groups, mask=there, other=0).to(tl.float32)[:, None]
    first = (both & 15).to(tl.float32) * step + low
    last = (both >> 4).to(tl.float32) * step + low
    place = out + groups[:, None] * (2 * HALF) + column
    tl.store(place, first.to(out.dtype.element_ty), mask=there[:, None])
    tl.store(place + HALF, last.to(out.dtype.element_ty), mask=there[:, None])
