"""A linear layer with its bias and activation.

Shape letters: n rows, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flexgen_helm.quant import kernels, prepacked
from flexgen_helm.quant.prepacked import PrepackedTensor, StoredTensor
from flexgen_helm.quant.tensor import QuantizedTensor

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda rows: rows,
    "relu": F.relu_,
    "gelu": F.gelu,
}

EXPECTED_ROWS = 2048
"""Rows of a product in prefill, for which oneDNN chooses the order of a weight."""

_FUSED_ALGORITHMS = {"none": "", "relu": "", "gelu": "none"}
"""oneDNN's name for the way an activation is computed; ``none`` is GELU without approximation."""


def linear(
    rows: Tensor,
    weight: StoredTensor,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Compute activation(rows @ weight.T + bias), [n, i] -> [n, o].

    Args:
        rows: [n, i].
        weight: [o, i]; a `QuantizedTensor` only where `kernels.multiply` can read it.
        bias: [o], if any.
        activation: ``none``, ``relu`` or ``gelu``.
    """
    if isinstance(weight, PrepackedTensor):
        return _ACTIVATIONS[activation](prepacked.multiply(rows, weight, bias))
    if isinstance(weight, QuantizedTensor):
        return _ACTIVATIONS[activation](kernels.multiply(rows, weight, bias))
    if _is_for_onednn(rows):
        return torch.ops.mkldnn._linear_pointwise(
            rows, weight, bias, activation, [], _FUSED_ALGORITHMS[activation]
        )
    return _ACTIVATIONS[activation](F.linear(rows, weight, bias))


def laid_out(weight: Tensor | QuantizedTensor, dtype: torch.dtype) -> StoredTensor:
    """Return a weight [o, i] as `linear` reads it fastest; only `linear` can read it then.

    oneDNN otherwise brings a weight into the order its kernels want for every product, which costs
    a twentieth of the time of a product with 2,000 rows.

    Args:
        weight: as it is stored.
        dtype: of the rows that are multiplied with it.
    """
    if isinstance(weight, QuantizedTensor):
        return prepacked.prepack(weight) if prepacked.can_prepack(weight, dtype) else weight
    if not _is_for_onednn(weight):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, EXPECTED_ROWS)


def _is_for_onednn(rows: Tensor) -> bool:
    """Whether oneDNN computes the product, and adds bias and activation while it writes it.

    PyTorch has it do so in bfloat16 alone, and copies the bias into the result beforehand and reads
    it again for the activation, a tenth of the time of layers as narrow as OPT-125M's. In float32
    PyTorch asks MKL, which on a processor of AMD's is up to three times slower.
    """
    return rows.device.type == "cpu" and rows.dtype in _ONEDNN_DTYPES


def _onednn_dtypes() -> set[torch.dtype]:
    """Return what oneDNN computes with instructions that the processor has."""
    if not torch.backends.mkldnn.is_available():
        return set()
    ops = torch.ops.mkldnn
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return set()
    return {torch.float32} | ({torch.bfloat16} if ops._is_mkldnn_bf16_supported() else set())


_ONEDNN_DTYPES = _onednn_dtypes()
