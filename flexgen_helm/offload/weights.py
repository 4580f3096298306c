"""Weights by part. A part is what one step of the schedule needs: a layer, or the embeddings.

The executor fetches a part, uses it for every micro-batch of the block and lets it go; it never
owns one. Here all parts stay in memory; a source that streams them from disk has the same face.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from flexgen_helm.quant import kernels, prepacked
from flexgen_helm.quant.prepacked import PrepackedTensor, StoredTensor
from flexgen_helm.quant.quantize import dequantize
from flexgen_helm.quant.tensor import QuantizedTensor

EMBEDDINGS = "embeddings"
"""The part with token and position tables, their projections, the final norm and the LM head."""


def layer_part(layer: int) -> str:
    """Name of a transformer layer's part."""
    return f"layer.{layer}"


Part = Mapping[str, StoredTensor]
"""Tensors of one part by name, in the compute dtype; matrices of layers may be as stored."""


class WeightSource(Protocol):
    """Hands out parts; a fetched part is valid until another one is fetched."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts as stored."""
        ...

    @property
    def linear_bytes(self) -> int:
        """Bytes of the matrices compression acts on: those of the transformer layers."""
        ...

    def fetch(self, part: str, *, packed: bool = False) -> Part:
        """Return a part in the compute dtype, dequantized if it is stored compressed.

        Args:
            part: its name.
            packed: whether matrices are wanted as they are stored, if few rows can be multiplied
                with them so.
        """
        ...

    def close(self) -> None:
        """Give back memory. The source is not used afterwards."""
        ...


class ResidentWeights:
    """All parts in the memory of the compute device, compressed ones dequantized on every fetch."""

    def __init__(self, parts: Mapping[str, Mapping[str, StoredTensor]], dtype: torch.dtype) -> None:
        self._parts = parts
        self._decompressor = Decompressor(dtype)

    @property
    def num_bytes(self) -> int:
        return sum(stored_bytes(x) for part in self._parts.values() for x in part.values())

    @property
    def linear_bytes(self) -> int:
        layers = (part for name, part in self._parts.items() if name != EMBEDDINGS)
        return sum(
            stored_bytes(tensor)
            for part in layers
            for tensor in part.values()
            if not isinstance(tensor, Tensor) or tensor.dim() == 2
        )

    def fetch(self, part: str, *, packed: bool = False) -> Part:
        return self._decompressor.decompress(self._parts[part], but_packed=packed)

    def close(self) -> None:
        self._parts = {}


class Decompressor:
    """Dequantizes matrices by name, those that have one name in turn into the same memory.

    Memory that is fresh from the system has to be provided and zeroed first, which takes a CPU as
    long as dequantizing does.

    Args:
        dtype: of the results.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._buffers: dict[str, Tensor] = {}

    def decompress(
        self, stored: Mapping[str, StoredTensor], *, but_packed: bool = False
    ) -> dict[str, StoredTensor]:
        """Return tensors in the compute dtype; those of the same names before are not valid now.

        Args:
            stored: the tensors.
            but_packed: whether those stay as they are that few rows can be multiplied with.
        """
        return {
            name: tensor if but_packed and _multiplies(tensor) else self._plain(name, tensor)
            for name, tensor in stored.items()
        }

    def _plain(self, name: str, tensor: StoredTensor) -> Tensor:
        if isinstance(tensor, Tensor):
            return tensor
        memory = self.memory(name, tensor)
        if isinstance(tensor, PrepackedTensor):
            return prepacked.dequantize(tensor, memory)
        return dequantize(tensor, self._dtype, memory)

    def memory(self, name: str, tensor: QuantizedTensor | PrepackedTensor) -> Tensor:
        """Return memory for the numbers of a tensor [`num_padded`], the same for all of a name."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < tensor.num_padded:
            buffer = tensor.codes.new_empty(tensor.num_padded, dtype=self._dtype)
            self._buffers[name] = buffer
        return buffer[: tensor.num_padded]


def stored_bytes(tensor: StoredTensor) -> int:
    """Bytes of a tensor as stored."""
    return tensor.nbytes if isinstance(tensor, Tensor) else tensor.num_bytes


def _multiplies(tensor: StoredTensor) -> bool:
    """Whether few rows can be multiplied with a tensor as it is stored."""
    if isinstance(tensor, QuantizedTensor):
        return kernels.are_made_for(tensor)
    return isinstance(tensor, PrepackedTensor)
