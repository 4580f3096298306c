"""Products of a few rows with a weight that stays as it is stored.

Such a product is bound by reading the weight, which takes a third of the bytes this way. The codes
become numbers of the rows' dtype, as dequantizing rounds them, and are summed up in float32.
Several programs share an output, each with a part of the weight's groups: with all of them, there
would not be enough programs to keep a card busy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexgen_helm.quant.kernels import FEW_ROWS
from flexgen_helm.quant.tensor import QuantizedTensor

OUTPUTS_AT_ONCE = 32
BYTES_AT_ONCE = 128
"""Of codes, of each output: whole cache lines."""

PROGRAMS = 1024
"""Enough for a large card."""

LEAST_TURNS = 4
"""Of the loop of a program: with fewer, more time goes into adding up."""


def multiply(rows: Tensor, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
    """See `kernels.multiply`."""
    num_outputs, num_groups = weight.scale.shape[:2]
    assert len(rows) <= FEW_ROWS, "more rows are for a dense product"
    rows = rows.contiguous()
    half = weight.group_size // 2
    at_once = max(1, BYTES_AT_ONCE // half)
    programs, turns = triton.cdiv(num_outputs, OUTPUTS_AT_ONCE), triton.cdiv(num_groups, at_once)
    parts = max(1, min(triton.cdiv(PROGRAMS, programs), turns // LEAST_TURNS))
    sums = torch.empty(parts, len(rows), num_outputs, dtype=torch.float32, device=rows.device)
    _multiply[(programs, parts)](
        rows,
        weight.codes,
        weight.scale,
        weight.zero,
        sums,
        len(rows),
        num_outputs,
        num_groups,
        triton.cdiv(turns, parts),
        half,
        at_once,
        FEW_ROWS,
        OUTPUTS_AT_ONCE,
    )
    total = sums.sum(0)
    if bias is not None:
        total += bias
    return total.to(rows.dtype)


@triton.jit
def _multiply(
    rows, codes, scale, zero, sums, num_rows, num_outputs, num_groups, turns,
    HALF: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    outputs = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    part, row, column = tl.program_id(1), tl.arange(0, ROWS), tl.arange(0, HALF)
    wanted, asked = outputs < num_outputs, row < num_rows
    dtype: tl.constexpr = rows.dtype.element_ty
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for turn in range(part * turns, (part + 1) * turns):
        group = turn * GROUPS + tl.arange(0, GROUPS)
        there = group < num_groups
        mask = wanted[:, None] & there
        place = outputs[:, None] * num_groups + group
        step = tl.load(scale + place, mask=mask, other=0).to(tl.float32)[:, :, None]
        low = tl.load(zero + place, mask=mask, other=0).to(tl.float32)[:, :, None]
        byte = place[:, :, None] * HALF + column
        both = tl.load(codes + byte, mask=mask[:, :, None], other=0)
        first = ((both & 15).to(tl.float32) * step + low).to(dtype)
        last = ((both >> 4).to(tl.float32) * step + low).to(dtype)
        # The low halves of a group's bytes are its first codes, the high halves its last.
        source = (row[:, None] * num_groups + group)[:, :, None] * (2 * HALF) + column
        read = (asked[:, None] & there)[:, :, None]
        with_first = tl.load(rows + source, mask=read, other=0)
        with_last = tl.load(rows + source + HALF, mask=read, other=0)
        total = tl.dot(
            tl.reshape(with_first, (ROWS, GROUPS * HALF)),
            tl.trans(tl.reshape(first, (OUTPUTS, GROUPS * HALF))),
            total,
            input_precision="ieee",
        )
        total = tl.dot(
            tl.reshape(with_last, (ROWS, GROUPS * HALF)),
            tl.trans(tl.reshape(last, (OUTPUTS, GROUPS * HALF))),
            total,
            input_precision="ieee",
        )
    out = (part * num_rows + row)[:, None] * num_outputs + outputs
    tl.store(sums + out, total, mask=asked[:, None] & wanted)
