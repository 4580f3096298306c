"""What the parts of a model are made of: one list for everybody who reads or makes weights.

| part | tensors |
|---|---|
| embeddings | tokens, positions, lm_head (untied), project_in, project_out (OPT-350m), final_norm |
| layer.i | attention_norm, qkv_proj, out_proj, mlp_norm, fc1, fc2 |

Norms and linear layers have a second tensor, with `.bias` appended, where they have a bias. The
three attention projections are stored as one matrix [3e, e]: one product instead of three.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from flexgen_helm.offload.weights import EMBEDDINGS, layer_part
from flexgen_helm.specs.model import POSITION_OFFSET, ModelSpec


class PartTensor(NamedTuple):
    """A tensor of a part, and where a checkpoint has it."""

    name: str
    """In the part."""

    sources: tuple[str, ...]
    """Names in the checkpoint; several are stacked along their first dimension."""

    shape: tuple[int, ...]
    """Of each source."""

    linear: bool = False
    """Whether it is a matrix that weight compression acts on."""

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Its own shape."""
        return (len(self.sources) * self.shape[0], *self.shape[1:])


class TensorSource(Protocol):
    """What has the tensors of a checkpoint."""

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor after checking it."""
        ...


def parts(spec: ModelSpec) -> dict[str, list[PartTensor]]:
    """Return the tensors of every part, in the order in which a pass needs the parts.

    A tied LM head is not among them: it is the token table.
    """
    layers = {layer_part(index): list(_layer(spec, index)) for index in range(spec.num_layers)}
    return {EMBEDDINGS: list(_embeddings(spec)), **layers}


def _embeddings(spec: ModelSpec) -> Iterator[PartTensor]:
    table = (spec.vocab_size, spec.embedding_size)
    positions = (spec.max_positions + POSITION_OFFSET, spec.hidden_size)
    project_in = (spec.hidden_size, spec.embedding_size)
    yield PartTensor("tokens", ("decoder.embed_tokens.weight",), table)
    yield PartTensor("positions", ("decoder.embed_positions.weight",), positions)
    if not spec.tied_embeddings:
        yield PartTensor("lm_head", ("lm_head.weight",), table)
    if spec.projected_embeddings:
        yield PartTensor("project_in", ("decoder.project_in.weight",), project_in)
        yield PartTensor("project_out", ("decoder.project_out.weight",), project_in[::-1])
    if spec.final_norm:
        yield from _norm(spec, "final_norm", "decoder.final_layer_norm")


def _layer(spec: ModelSpec, index: int) -> Iterator[PartTensor]:
    path = f"decoder.layers.{index}"
    projections = tuple(f"{path}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))
    yield from _norm(spec, "attention_norm", f"{path}.self_attn_layer_norm")
    yield from _linear(spec, "qkv_proj", projections)
    yield from _linear(spec, "out_proj", (f"{path}.self_attn.out_proj",))
    yield from _norm(spec, "mlp_norm", f"{path}.final_layer_norm")
    yield from _linear(spec, "fc1", (f"{path}.fc1",))
    yield from _linear(spec, "fc2", (f"{path}.fc2",))


def _linear(spec: ModelSpec, name: str, paths: tuple[str, ...]) -> Iterator[PartTensor]:
    shape = spec.linear_shapes[paths[0].rpartition(".")[2]]
    yield PartTensor(name, tuple(f"{path}.weight" for path in paths), shape, linear=True)
    if spec.bias:
        yield PartTensor(f"{name}.bias", tuple(f"{path}.bias" for path in paths), shape[:1])


def _norm(spec: ModelSpec, name: str, path: str) -> Iterator[PartTensor]:
    if spec.norm_affine:
        yield PartTensor(name, (f"{path}.weight",), (spec.hidden_size,))
        yield PartTensor(f"{name}.bias", (f"{path}.bias",), (spec.hidden_size,))
