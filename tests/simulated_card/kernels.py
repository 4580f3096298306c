"""What Triton's kernels compute, by PyTorch: of tensors of the host."""

import torch.nn.functional as F

from flexgen_helm.quant.quantize import dequantize
from flexgen_helm.quant.quantize import quantize as quantize_rows


def dequantize_into(buffer, tensor):
    return buffer.copy_(dequantize(tensor, buffer.dtype).flatten())


def quantize(rows, group_size):
    return quantize_rows(rows, bits=4, group_size=group_size)


def quantize_into(room, rows, slots, positions):
    for tensor, part in zip(room.tensors, quantize(rows, room.group_size).tensors, strict=True):
        tensor[slots, positions] = part


def multiply(rows, weight, bias):
    return F.linear(rows, dequantize(weight, rows.dtype), bias)


def attend(queries, keys, values, ends):
    num_heads, head_size = queries.shape[1:]
    k, v = (
        dequantize(x, queries.dtype).unflatten(2, (num_heads, head_size)).transpose(1, 2)
        for x in (keys, values)
    )
    scores = (k @ queries[..., None])[..., 0].float()
    seen = ends.new_ones(scores.shape[-1]).cumsum(0) <= ends[:, None, None]
    scores = scores.masked_fill(~seen, float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0).to(v.dtype)
    return (weights[:, :, None] @ v)[:, :, 0], scores.logsumexp(-1)


WRITTEN = {dequantize_into: [0], quantize: [], quantize_into: [0], multiply: [], attend: []}
"""Indices of the arguments that each writes."""
