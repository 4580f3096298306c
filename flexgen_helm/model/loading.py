"""From a checkpoint's tensors to the parts the executor fetches.

| part | tensors |
|---|---|
| embeddings | tokens, positions, lm_head, project_in, project_out (OPT-350m), final_norm |
| layer.i | attention_norm, qkv_proj, out_proj, mlp_norm, fc1, fc2 |

Norms and linear layers have a second tensor, with `.bias` appended, where they have a bias. The
three attention projections are stored as one matrix [3e, e]: one product instead of three.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flexgen_helm.model.checkpoint import CheckpointReader
from flexgen_helm.model.linear import laid_out
from flexgen_helm.offload.weights import EMBEDDINGS, ResidentWeights, layer_part
from flexgen_helm.quant.quantize import QuantizedTensor, quantize
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import POSITION_OFFSET, ModelSpec

StoredPart = dict[str, Tensor | QuantizedTensor]


def load_weights(
    reader: CheckpointReader,
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
    loader = _Loader(reader, spec, compression, dtype, device)
    parts = {EMBEDDINGS: loader.embeddings()}
    on_part()
    for layer in range(spec.num_layers):
        parts[layer_part(layer)] = loader.layer(layer)
        on_part()
    return ResidentWeights(parts, dtype)


class _Loader:
    def __init__(
        self,
        reader: CheckpointReader,
        spec: ModelSpec,
        compression: Compression,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._reader = reader
        self._spec = spec
        self._compression = compression
        self._dtype = dtype
        self._device = device

    def embeddings(self) -> StoredPart:
        spec = self._spec
        token_shape = (spec.vocab_size, spec.embedding_size)
        tokens = self._read("decoder.embed_tokens.weight", token_shape)
        positions_shape = (spec.max_positions + POSITION_OFFSET, spec.hidden_size)
        part: StoredPart = {
            "tokens": tokens,
            "positions": self._read("decoder.embed_positions.weight", positions_shape),
            "lm_head": tokens
            if spec.tied_embeddings
            else self._read("lm_head.weight", token_shape),
        }
        if spec.projected_embeddings:
            in_shape = (spec.hidden_size, spec.embedding_size)
            part["project_in"] = self._read("decoder.project_in.weight", in_shape)
            part["project_out"] = self._read("decoder.project_out.weight", in_shape[::-1])
        if spec.final_norm:
            part |= self._norm("final_norm", "decoder.final_layer_norm")
        return part

    def layer(self, index: int) -> StoredPart:
        prefix = f"decoder.layers.{index}"
        return {
            **self._norm("attention_norm", f"{prefix}.self_attn_layer_norm"),
            **self._linear(
                "qkv_proj",
                {name: f"{prefix}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")},
            ),
            **self._linear("out_proj", {"out_proj": f"{prefix}.self_attn.out_proj"}),
            **self._norm("mlp_norm", f"{prefix}.final_layer_norm"),
            **self._linear("fc1", {"fc1": f"{prefix}.fc1"}),
            **self._linear("fc2", {"fc2": f"{prefix}.fc2"}),
        }

    def _linear(self, name: str, sources: dict[str, str]) -> StoredPart:
        """Matrices stacked along their outputs and compressed, and their biases."""
        shapes = self._spec.linear_shapes
        matrices = [self._read(f"{path}.weight", shapes[key]) for key, path in sources.items()]
        part: StoredPart = {name: self._compress(torch.cat(matrices))}
        if self._spec.bias:
            biases = [self._read(f"{path}.bias", shapes[key][:1]) for key, path in sources.items()]
            part[f"{name}.bias"] = torch.cat(biases)
        return part

    def _norm(self, name: str, path: str) -> StoredPart:
        if not self._spec.norm_affine:
            return {}
        shape = (self._spec.hidden_size,)
        return {
            name: self._read(f"{path}.weight", shape),
            f"{name}.bias": self._read(f"{path}.bias", shape),
        }

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._reader.read(name, shape).to(self._device, self._dtype)

    def _compress(self, matrix: Tensor) -> Tensor | QuantizedTensor:
        bits = self._compression.weight_bits
        if bits is None:
            return laid_out(matrix)
        return quantize(matrix, bits=bits, group_size=self._compression.group_size)
