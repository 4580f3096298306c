"""From a checkpoint's tensors to the parts the executor fetches, all of them kept in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flexgen_helm.model.linear import laid_out
from flexgen_helm.model.parts import PartTensor, TensorSource, parts
from flexgen_helm.offload.weights import ResidentWeights
from flexgen_helm.quant.prepacked import StoredTensor
from flexgen_helm.quant.quantize import quantize
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec


def load_weights(
    reader: TensorSource,
    spec: ModelSpec,
    compression: Compression,
    *,
    dtype: torch.dtype,
    device: torch.device,
    on_part: Callable[[], object] = lambda: None,
) -> ResidentWeights:
    """Read a checkpoint part by part, compressing each linear layer as it comes.

    Args:
        reader: the checkpoint.
        spec: its architecture.
        compression: what the linear layers are stored as.
        dtype: compute dtype, and storage dtype of all else.
        device: where the weights are kept.
        on_part: called after each of the `num_layers + 1` parts, for progress.

    Raises:
        CheckpointError: a tensor is missing, damaged or of another shape than the spec says.
    """

    def load(tensor: PartTensor) -> StoredTensor:
        sources = [reader.read(name, tensor.shape).to(device, dtype) for name in tensor.sources]
        stacked = torch.cat(sources) if len(sources) > 1 else sources[0]
        return _compress(stacked, compression) if tensor.linear else stacked

    loaded = {}
    for part, tensors in parts(spec).items():
        loaded[part] = {tensor.name: load(tensor) for tensor in tensors}
        on_part()
    return ResidentWeights(loaded, dtype)


def _compress(matrix: Tensor, compression: Compression) -> StoredTensor:
    bits, group_size = compression.weight_bits, compression.group_size
    stored = matrix if bits is None else quantize(matrix, bits=bits, group_size=group_size)
    return laid_out(stored, matrix.dtype)
