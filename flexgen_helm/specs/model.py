"""The shape of an OPT-family model and the bytes its parts take.

Planner and runtime both count with these formulas; the runtime's tests hold them against the
bytes of real tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flexgen_helm.errors import UnsupportedModelError
from flexgen_helm.specs.compression import Compression, quantized_bytes

ACTIVATIONS = ("relu", "gelu")
POSITION_OFFSET = 2
"""OPT's position table begins with two rows that no position uses."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Architecture of a model, as in the `config.json` of OPT, OPT-IML and Galactica checkpoints.

    Shape letters: e is `hidden_size`, h is `num_heads`, d is `head_size`, v is `vocab_size`.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    embedding_size: int
    """Width of the token embedding; OPT-350m projects it to and from `hidden_size`."""

    norm_before: bool = True
    """Layer norm before attention and MLP (all but OPT-350m) or after."""

    final_norm: bool = True
    """Layer norm after the last layer; only with `norm_before`."""

    norm_affine: bool = True
    """Whether layer norms have weights."""

    bias: bool = True
    """Whether linear layers have biases (Galactica's have none)."""

    activation: str = "relu"
    tied_embeddings: bool = True
    """Whether the LM head is the token embedding."""

    eos_token_ids: tuple[int, ...] = (2,)
    """Tokens that end a completion."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelSpec:
        """Read the fields of a checkpoint's `config.json`.

        Raises:
            UnsupportedModelError: another architecture, a feature of it we do not run, or a field
                that is missing.
        """
        _check(config, "model_type", ("opt",))
        _check(config, "activation_function", ACTIVATIONS, default="relu")
        hidden_size = _size(config, "hidden_size")
        num_heads = _size(config, "num_attention_heads")
        if hidden_size % num_heads:
            raise UnsupportedModelError(
                f"hidden_size={hidden_size} is not a multiple of num_attention_heads={num_heads}:"
                " the checkpoint's config.json is damaged"
            )
        norm_before = config.get("do_layer_norm_before", True)
        return cls(
            num_layers=_size(config, "num_hidden_layers"),
            hidden_size=hidden_size,
            num_heads=num_heads,
            ffn_size=_size(config, "ffn_dim"),
            vocab_size=_size(config, "vocab_size"),
            max_positions=_size(config, "max_position_embeddings"),
            embedding_size=_size(config, "word_embed_proj_dim", default=hidden_size),
            norm_before=norm_before,
            final_norm=norm_before and not config.get("_remove_final_layer_norm", False),
            norm_affine=config.get("layer_norm_elementwise_affine", True),
            bias=config.get("enable_bias", True),
            activation=config.get("activation_function", "relu"),
            tied_embeddings=config.get("tie_word_embeddings", True),
            eos_token_ids=_token_ids(config.get("eos_token_id", 2)),
        )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def projected_embeddings(self) -> bool:
        """Whether projections stand between token embedding and hidden states."""
        return self.embedding_size != self.hidden_size

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of the linear layers of one transformer layer."""
        e, f = self.hidden_size, self.ffn_size
        return {
            "q_proj": (e, e),
            "k_proj": (e, e),
            "v_proj": (e, e),
            "out_proj": (e, e),
            "fc1": (f, e),
            "fc2": (e, f),
        }

    @property
    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """Those shapes as products have them: queries, keys and values are one matrix."""
        shapes = self.linear_shapes
        qkv = [shapes.pop(name) for name in ("q_proj", "k_proj", "v_proj")]
        return {"qkv_proj": (sum(out for out, _ in qkv), self.hidden_size), **shapes}

    @property
    def num_linear_parameters(self) -> int:
        """Parameters that weight compression acts on: the matrices of all transformer layers."""
        return self.num_layers * sum(out * in_ for out, in_ in self.linear_shapes.values())

    @property
    def num_other_parameters(self) -> int:
        """Embeddings, projections, norms and biases; these stay in the compute dtype."""
        e = self.hidden_size
        token_tables = 1 if self.tied_embeddings else 2
        embeddings = token_tables * self.vocab_size * self.embedding_size
        positions = (self.max_positions + POSITION_OFFSET) * e
        projections = 2 * self.embedding_size * e if self.projected_embeddings else 0
        biases = sum(out for out, _ in self.linear_shapes.values()) if self.bias else 0
        norms_per_layer = 2 * 2 * e if self.norm_affine else 0
        final_norm = 2 * e if self.final_norm and self.norm_affine else 0
        per_layer = biases + norms_per_layer
        return embeddings + positions + projections + final_norm + self.num_layers * per_layer

    @property
    def num_parameters(self) -> int:
        return self.num_linear_parameters + self.num_other_parameters

    def linear_weight_bytes(self, compression: Compression, *, dtype_bytes: int) -> int:
        """Bytes of the linear layers as stored."""
        if compression.weight_bits is None:
            return self.num_linear_parameters * dtype_bytes
        return self.num_layers * sum(
            quantized_bytes(
                num_rows=out,
                row_len=in_,
                bits=compression.weight_bits,
                group_size=compression.group_size,
            )
            for out, in_ in self.linear_shapes.values()
        )

    def weight_bytes(self, compression: Compression, *, dtype_bytes: int) -> int:
        """Bytes of all weights as stored."""
        linear = self.linear_weight_bytes(compression, dtype_bytes=dtype_bytes)
        return linear + self.num_other_parameters * dtype_bytes

    def cache_bytes(self, compression: Compression, *, num_tokens: int, dtype_bytes: int) -> int:
        """Bytes of the KV cache of `num_tokens` tokens over all layers."""
        rows = 2 * self.num_layers * num_tokens  # a key row and a value row of width e
        if compression.cache_bits is None:
            return rows * self.hidden_size * dtype_bytes
        return quantized_bytes(
            num_rows=rows,
            row_len=self.hidden_size,
            bits=compression.cache_bits,
            group_size=compression.group_size,
        )


def _check(
    config: Mapping[str, Any], field: str, allowed: tuple[str, ...], default: str | None = None
) -> None:
    value = config.get(field, default)
    if value not in allowed:
        raise UnsupportedModelError(
            f"{field}={value!r} in config.json is not supported, only {' or '.join(allowed)}:"
            " use an OPT, OPT-IML or Galactica checkpoint"
        )


def _size(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field) or default
    if type(value) is not int or value < 1:
        raise UnsupportedModelError(
            f"{field}={config.get(field)!r} in config.json is not possible, it is a whole number of"
            " at least 1: the checkpoint's config.json is damaged, fetch it again"
        )
    return value


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
