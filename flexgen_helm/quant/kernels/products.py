"""Products of a few rows with a weight that stays as it is stored.

Such a product is bound by reading the weight, which takes a third of the bytes this way. The codes
become numbers of the rows' dtype, as dequantizing rounds them, and are summed up in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from flexgen_helm.quant.kernels import FEW_ROWS
from flexgen_helm.quant.tensor import QuantizedTensor

OUTPUTS_AT_ONCE = 32
BYTES_AT_ONCE = 128
"""Of codes, of each output: whole cache lines."""


def multiply(rows: Tensor, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
    """See `kernels.multiply`."""
    num_outputs, num_groups = weight.scale.shape[:2]
    assert len(rows) <= FEW_ROWS, "more rows are for a dense product"
    rows = rows.contiguous()
    out = rows.new_empty(len(rows), num_outputs)
    half = weight.group_size // 2
    _multiply[(triton.cdiv(num_outputs, OUTPUTS_AT_ONCE),)](
        rows,
        weight.codes,
        weight.scale,
        weight.zero,
        bias if bias is not None else rows,
        out,
        len(rows),
        num_outputs,
        num_groups,
        half,
        max(1, BYTES_AT_ONCE // half) * half,
        FEW_ROWS,
        OUTPUTS_AT_ONCE,
        bias is not None,
    )
    return out


@triton.jit
def _multiply(
    rows, codes, scale, zero, bias, out, num_rows, num_outputs, num_groups,
    HALF: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    outputs = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    row, column = tl.arange(0, ROWS), tl.arange(0, BYTES)
    wanted, asked = outputs < num_outputs, row < num_rows
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for start in range(0, num_groups * HALF, BYTES):
        byte = start + column
        group = byte // HALF
        there = group < num_groups
        mask = wanted[:, None] & there
        both = tl.load(codes + outputs[:, None] * (num_groups * HALF) + byte, mask=mask, other=0)
        step = tl.load(scale + outputs[:, None] * num_groups + group, mask=mask, other=0)
        low = tl.load(zero + outputs[:, None] * num_groups + group, mask=mask, other=0)
        step, low = step.to(tl.float32), low.to(tl.float32)
        first = ((both & 15).to(tl.float32) * step + low).to(rows.dtype.element_ty)
        last = ((both >> 4).to(tl.float32) * step + low).to(rows.dtype.element_ty)
        # The low halves of a group's bytes are its first codes, the high halves its last.
        source = rows + row[:, None] * (num_groups * 2 * HALF) + group * (2 * HALF) + byte % HALF
        read = asked[:, None] & there
        with_first = tl.load(source, mask=read, other=0)
        with_last = tl.load(source + HALF, mask=read, other=0)
        total = tl.dot(with_first, tl.trans(first), total, input_precision="ieee")
        total = tl.dot(with_last, tl.trans(last), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + outputs, mask=wanted, other=0).to(tl.float32)
    place = out + row[:, None] * num_outputs + outputs
    tl.store(place, total.to(out.dtype.element_ty), mask=asked[:, None] & wanted)
