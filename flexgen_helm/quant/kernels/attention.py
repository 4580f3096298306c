"""Attention of one query per sequence to keys and values as they are stored.

One program a sequence and head, a stretch of positions at a time with an online softmax
(FlashAttention, arXiv 2205.14135). What sequences share is attended to elsewhere: the log-sum-exp
returned is all it takes to merge the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flexgen_helm.quant.tensor import QuantizedTensor

POSITIONS_AT_ONCE = 64


def attend(
    queries: Tensor, keys: QuantizedTensor, values: QuantizedTensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """See `kernels.attend`."""
    b, h, d = queries.shape
    queries = queries.contiguous()
    attended = torch.empty_like(queries)
    lse = queries.new_empty(b, h, dtype=torch.float32)
    half = keys.group_size // 2
    _attend[(b, h)](
        queries,
        *keys.tensors,
        *values.tensors,
        ends,
        attended,
        lse,
        keys.codes.shape[1],
        h,
        half,
        d // 2,
        POSITIONS_AT_ONCE,
    )
    return attended, lse


@triton.jit
def _read(codes, scale, zero, first_byte, first_group, HALF: tl.constexpr, dtype: tl.constexpr,
          BYTES: tl.constexpr, there):  # fmt: skip
    """Numbers of a head at some positions: those of low and those of high halves of bytes."""
    byte = tl.arange(0, BYTES)
    both = tl.load(codes + first_byte[:, None] + byte, mask=there[:, None], other=0)
    group = first_group[:, None] + byte // HALF
    step = tl.load(scale + group, mask=there[:, None], other=0).to(tl.float32)
    low = tl.load(zero + group, mask=there[:, None], other=0).to(tl.float32)
    first = ((both & 15).to(tl.float32) * step + low).to(dtype).to(tl.float32)
    last = ((both >> 4).to(tl.float32) * step + low).to(dtype).to(tl.float32)
    return first, last


@triton.jit(do_not_specialize=["num_positions"])  # pools have many: it would be compiled again
def _attend(
    queries, key_codes, key_scale, key_zero, value_codes, value_scale, value_zero, ends,
    attended, lse, num_positions, num_heads,
    HALF: tl.constexpr, BYTES: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dtype: tl.constexpr = queries.dtype.element_ty
    groups = BYTES // HALF  # of a head
    byte = tl.arange(0, BYTES)
    # Where in a head the low halves of its bytes belong; the high ones are HALF further on.
    place = (slot * num_heads + head) * (2 * BYTES) + (byte // HALF) * (2 * HALF) + byte % HALF
    first_query = tl.load(queries + place).to(tl.float32)
    last_query = tl.load(queries + place + HALF).to(tl.float32)
    end = tl.load(ends + slot)
    most = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    first_sum = tl.zeros((BYTES,), dtype=tl.float32)
    last_sum = tl.zeros((BYTES,), dtype=tl.float32)
    for start in range(0, end, POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        there = position < end
        cell_group = ((slot * num_positions + position) * num_heads + head) * groups
        cell_byte = cell_group * HALF
        first, last = _read(
            key_codes, key_scale, key_zero, cell_byte, cell_group, HALF, dtype, BYTES, there
        )
        scores = tl.sum(first * first_query + last * last_query, axis=1)
        scores = tl.where(there, scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, axis=0))
        shrink = tl.exp(most - larger)
        weights = tl.exp(scores - larger)
        first, last = _read(
            value_codes, value_scale, value_zero, cell_byte, cell_group, HALF, dtype, BYTES, there
        )
        first_sum = first_sum * shrink + tl.sum(weights[:, None] * first, axis=0)
        last_sum = last_sum * shrink + tl.sum(weights[:, None] * last, axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        most = larger
    some = end > 0
    divisor = tl.where(some, total, 1.0)
    tl.store(attended + place, (first_sum / divisor).to(dtype))
    tl.store(attended + place + HALF, (last_sum / divisor).to(dtype))
    known = tl.where(some, most + tl.log(divisor), float("-inf"))
    tl.store(lse + slot * num_heads + head, known)
