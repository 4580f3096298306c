"""Asymmetric min-max quantization over groups of consecutive numbers (FlexGen paper, section 4).

A group's zero is its minimum and its scale the range over the largest code, both kept as float16;
codes are rounded against these stored values, so that their rounding is not added on top.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from flexgen_helm.quant import kernels
from flexgen_helm.quant.packing import pack, unpack
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.specs.chunks import DEQUANTIZED_AT_ONCE


def quantize(values: Tensor, *, bits: int, group_size: int) -> QuantizedTensor:
    """Quantize [..., row_len] along the last dimension.

    Numbers of a group differ from what `dequantize` returns by at most half its scale, plus the
    rounding of scale and zero to float16. A constant group keeps its value. A group with a NaN, an
    infinity or a value float16 cannot hold comes back as NaN throughout: an overflow stays visible.
    """
    row_len = values.shape[-1]
    rows = values.reshape(-1, row_len)
    if kernels.exist_for(bits, group_size, row_len, values.device):
        return _in_shape(kernels.quantize(_dense_rows(rows), group_size), values)
    most = max(1, DEQUANTIZED_AT_ONCE // row_len)
    if not values.is_cpu or len(rows) <= most:
        return _quantize(values, bits, group_size)
    # A part at a time, which takes half as long: what is computed on the way stays in the cache.
    parts = [
        _quantize(part, bits, group_size) for part in rows.split(_even_step(len(rows), most=most))
    ]
    codes, scale, zero = (
        torch.cat(tensors) for tensors in zip(*(x.tensors for x in parts), strict=True)
    )
    return _in_shape(replace(parts[0], codes=codes, scale=scale, zero=zero), values)


def _dense_rows(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _in_shape(rows: QuantizedTensor, values: Tensor) -> QuantizedTensor:
    """Give rows that were quantized the shape of what they were made of."""
    return rows.map(lambda x: x.view(*values.shape[:-1], *x.shape[1:]))


def _quantize(values: Tensor, bits: int, group_size: int) -> QuantizedTensor:
    groups = _split_into_groups(values.float(), group_size)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    largest_code = 2**bits - 1
    zero = low.half()
    # Rounding the zero down could leave the maximum out of reach, so the range starts at the
    # stored zero rather than at the minimum.
    # By a tensor: by a number a GPU would multiply with its inverse, which is not the same.
    largest = high.new_full((), largest_code)
    scale = ((high - zero.float()) / largest).clamp_(min=0).half()
    broken = ~(torch.isfinite(zero) & torch.isfinite(scale))
    scale = torch.where(broken, torch.nan, scale)
    step = torch.where((scale > 0) & ~broken, scale, 1).float()
    codes = ((groups - zero.float()) / step).round_().nan_to_num_(nan=0)
    codes = codes.clamp_(0, largest_code).to(torch.uint8)
    return QuantizedTensor(
        codes=pack(codes, bits),
        scale=scale,
        zero=zero,
        bits=bits,
        group_size=group_size,
        row_len=values.shape[-1],
    )


def dequantize(
    quantized: QuantizedTensor, dtype: torch.dtype, buffer: Tensor | None = None
) -> Tensor:
    """Return the [..., row_len] numbers the codes stand for, in `dtype`.

    Args:
        quantized: the codes.
        dtype: of the result.
        buffer: [`num_padded`] numbers of this dtype whose memory the result may have.
    """
    num_groups, lead = quantized.codes.shape[-2], quantized.codes.shape[:-2]
    if buffer is None:
        buffer = quantized.codes.new_empty(quantized.num_padded, dtype=dtype)
    if kernels.are_made_for(quantized):
        return kernels.dequantize_into(buffer, quantized).view(*lead, quantized.row_len)
    values = buffer.view(-1, num_groups, quantized.group_size)
    rows = quantized.map(lambda x: x.reshape(1, -1, num_groups, x.shape[-1]))
    dequantize_into(values[None], rows)
    return values.flatten(1)[:, : quantized.row_len].reshape(*lead, quantized.row_len)


def dequantize_into(out: Tensor, quantized: QuantizedTensor) -> None:
    """Put the numbers of codes [b, t, g, ...] where they belong, in any order in memory.

    A part of them at a time, as what is computed on the way takes several times their bytes.

    Args:
        out: [b, t, ..., group_size], whose middle dimensions are g together.
        quantized: the codes of rows that are whole groups.
    """
    num_slots, num_positions, num_groups = quantized.codes.shape[:3]
    row_len = num_groups * quantized.group_size
    positions = _even_step(num_positions, most=max(1, DEQUANTIZED_AT_ONCE // row_len))
    most_slots = max(1, DEQUANTIZED_AT_ONCE // (positions * row_len))
    slots = _even_step(num_slots, most=1 if positions < num_positions else most_slots)
    # Chunks of one size, into memory taken once: that alone saves a fifth of the time.
    scratch = torch.empty(slots * positions * row_len, dtype=torch.float32, device=out.device)
    for first, start in product(range(0, num_slots, slots), range(0, num_positions, positions)):
        chunk = slice(first, first + slots), slice(start, start + positions)
        part = quantized.map(lambda x: x[chunk].unflatten(2, out.shape[2:-1]))  # noqa: B023
        target = out[chunk]
        _dequantize(part, scratch[: target.numel()].view_as(target), target)


def _dequantize(rows: QuantizedTensor, scratch: Tensor, out: Tensor) -> None:
    """Dequantize all rows, with the padding of their last groups, into [rows, g, group_size]."""
    # In float32, because a 16-bit product of code and scale would add an error of its own that
    # with 8-bit codes is as large as half a step. In two steps, because a product with a sum is
    # not vectorized where a group has one scale and one zero.
    values = unpack(rows.codes, rows.bits, scratch)
    values *= rows.scale.float()
    torch.add(values, rows.zero.float(), out=out)


def _even_step(count: int, *, most: int) -> int:
    """Return the size of as few chunks as possible, of at most so many and about the same size."""
    return max(1, ceil(count / ceil(count / most))) if count else 1


def _split_into_groups(values: Tensor, group_size: int) -> Tensor:
    """[..., row_len] -> [..., g, group_size]; a short last group repeats the row's last number."""
    missing = -values.shape[-1] % group_size
    if missing:
        rows = values.reshape(1, -1, values.shape[-1])
        values = F.pad(rows, (0, missing), mode="replicate").reshape(*values.shape[:-1], -1)
    return values.unflatten(-1, (-1, group_size))
