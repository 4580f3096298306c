"""Arithmetic with 4-bit codes in fused kernels for a GPU, in Triton.

Each does in one pass over memory what PyTorch takes several for, and is tested against that. Where
there is no such kernel - another number of bits, another group size, a CPU - `are_made_for` says so
and PyTorch computes.

Triton comes with PyTorch for CUDA; it is imported with the first kernel that is used.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor, cuda

from flexgen_helm.notices import FlexGenWarning
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.specs.compression import (
    KERNEL_BITS,
    LEAST_KERNEL_GROUP,
    kernels_attend,
    kernels_read,
)

FEW_ROWS = 16
"""Rows of a product that a kernel multiplies with codes: as many as a tensor core takes."""


def exist_for(bits: int | None, group_size: int, row_len: int, device: torch.device) -> bool:
    """Whether there are kernels for rows that are quantized so, on a device."""
    return kernels_read(bits, group_size, row_len) and run_on(device)


def are_made_for(tensor: QuantizedTensor) -> bool:
    """Whether there are kernels for a tensor, where it is."""
    return exist_for(tensor.bits, tensor.group_size, tensor.row_len, tensor.codes.device)


def run_on(device: torch.device) -> bool:
    """Whether a device runs kernels at all."""
    return device.type == "cuda" and _compile()


def dequantize_into(buffer: Tensor, tensor: QuantizedTensor) -> Tensor:
    """Write the numbers that codes stand for one after another; return `buffer`.

    Args:
        buffer: as many as there are, in the dtype that is wanted.
        tensor: the codes.
    """
    from flexgen_helm.quant.kernels.dequantizing import dequantize_into

    with cuda.device_of(buffer):
        return dequantize_into(buffer, tensor)


def quantize(rows: Tensor, group_size: int) -> QuantizedTensor:
    """Quantize rows [n, row_len] to 4 bits."""
    from flexgen_helm.quant.kernels.quantizing import quantize

    with cuda.device_of(rows):
        return quantize(rows, group_size)


def quantize_into(room: QuantizedTensor, rows: Tensor, slots: Tensor, positions: Tensor) -> None:
    """Quantize rows into cells of a room.

    Args:
        room: [b, t, row_len].
        rows: [n, row_len].
        slots: of each row [n], int64.
        positions: in its slot [n], int64.
    """
    from flexgen_helm.quant.kernels.quantizing import quantize_into

    with cuda.device_of(rows):
        quantize_into(room, rows, slots, positions)


def multiply(rows: Tensor, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
    """Return rows @ weight.T + bias, [n, i] -> [n, o], without dequantizing the weight first.

    Args:
        rows: [n, i], up to `FEW_ROWS`.
        weight: [o, i].
        bias: [o], if any.
    """
    from flexgen_helm.quant.kernels.products import multiply

    with cuda.device_of(rows):
        return multiply(rows, weight, bias)


def can_attend(bits: int | None, group_size: int, head_size: int, device: torch.device) -> bool:
    """Whether `attend` can read keys and values: no group of theirs has numbers of two heads."""
    return kernels_attend(bits, group_size, head_size) and run_on(device)


def attend(
    queries: Tensor, keys: QuantizedTensor, values: QuantizedTensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of one query per sequence to its cached past, read as it is stored.

    Args:
        queries: [b, h, d], scaled.
        keys: [b, t, h * d].
        values: [b, t, h * d].
        ends: positions each sequence has [b], int64; with none it attends to nothing.

    Returns:
        values [b, h, d], and log-sum-exp of the scores [b, h] in float32.
    """
    from flexgen_helm.quant.kernels.attention import attend

    with cuda.device_of(queries):
        return attend(queries, keys, values, ends)


@lru_cache(maxsize=1)
def _compile() -> bool:
    """Whether Triton is there and can compile a kernel, for which it needs a C compiler."""
    if find_spec("triton") is None:
        return False
    try:
        from flexgen_helm.quant.kernels.dequantizing import dequantize_into

        codes = torch.zeros(1, 1, LEAST_KERNEL_GROUP // 2, dtype=torch.uint8, device="cuda")
        scale = torch.ones(1, 1, 1, dtype=torch.float16, device="cuda")
        tensor = QuantizedTensor(
            codes=codes, scale=scale, zero=scale, bits=KERNEL_BITS, group_size=LEAST_KERNEL_GROUP,
            row_len=LEAST_KERNEL_GROUP,
        )  # fmt: skip
        dequantize_into(torch.empty(LEAST_KERNEL_GROUP, device="cuda"), tensor)
    except Exception as error:  # whatever a compiler may say
        warnings.warn(
            f"Triton compiles nothing here ({error}): PyTorch computes",
            FlexGenWarning,
            stacklevel=2,
        )
        return False
    return True
