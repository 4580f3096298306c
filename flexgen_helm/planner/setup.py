"""What is planned for."""

from __future__ import annotations

from dataclasses import dataclass

from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model, and how it is computed."""

    spec: ModelSpec
    compression: Compression
    dtype_bytes: int
    """Of a number in the compute dtype."""

    unified: bool
    """Whether device and host are one memory."""

    has_attention_kernel: bool = False
    """Whether the device attends to a compressed cache as it is stored."""

    @property
    def weight_bytes(self) -> int:
        """Of all layers, as stored."""
        return self.spec.linear_weight_bytes(self.compression, dtype_bytes=self.dtype_bytes)

    @property
    def cached_token_bytes(self) -> int:
        """Of a token's keys and values in all layers, as stored."""
        return self.spec.cache_bytes(self.compression, num_tokens=1, dtype_bytes=self.dtype_bytes)

    def cache_numbers(self, tokens: float) -> float:
        """Keys and values of some tokens in all layers."""
        return 2 * tokens * self.spec.num_layers * self.spec.hidden_size

    def hidden_bytes(self, tokens: float) -> float:
        """Of hidden states of some tokens, once for every layer."""
        return tokens * self.spec.num_layers * self.spec.hidden_size * self.dtype_bytes

    def attends_packed(self, attention: str) -> bool:
        """Whether tokens in decode do so; sparse attention does not, nor does the host."""
        dense = self.compression.dense_attention
        return self.has_attention_kernel and dense and attention == "device"

    def captures_decode(self, policy: Policy) -> bool:
        """Whether a GPU replays passes of decode; sparse attention has to look at lengths."""
        dense = self.compression.dense_attention
        return policy.cuda_graphs and policy.stays_on_device and dense
