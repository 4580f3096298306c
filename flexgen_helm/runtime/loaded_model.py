"""A model ready to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flexgen_helm.model.cache_format import CacheFormat, KeysValuesTiers
from flexgen_helm.offload.spill import Spill
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.offload.weights import WeightSource
from flexgen_helm.runtime.detokenizer import Tokenizer
from flexgen_helm.specs.chunks import MOST_SPILLED_AT_ONCE
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Model:
    """Architecture, weights and tokenizer, and how to compute with them."""

    spec: ModelSpec
    weights: WeightSource
    tokenizer: Tokenizer
    compression: Compression
    dtype: torch.dtype
    device: torch.device
    cache_tiers: Sequence[KeysValuesTiers] = ()
    """Where its keys and values are, by layer; all on the device if empty."""

    attention_on_host: bool = False
    """Whether sequences in decode attend to their own keys and values in the host's memory."""

    spill: Spill | None = None
    """Where what a policy has on disk is, beside weights."""

    spilled_at_once: int = MOST_SPILLED_AT_ONCE
    """Bytes of keys, or of values, of a layer that are read from disk at once."""

    waiting: Waiting = field(default_factory=Waiting)
    """For disk and link."""

    @property
    def cache_format(self) -> CacheFormat:
        """How its keys and values are stored."""
        return CacheFormat(
            spec=self.spec,
            compression=self.compression,
            dtype=self.dtype,
            device=self.device,
            tiers=self.cache_tiers,
            spill=self.spill,
        )

    @property
    def attention_device(self) -> torch.device:
        """Where sequences in decode attend to their own keys and values."""
        return torch.device("cpu") if self.attention_on_host else self.device

    def close(self) -> None:
        """Give back memory and disk."""
        self.weights.close()
        if self.spill is not None:
            self.spill.close()

    def indices(self, values: object) -> Tensor:
        """Integers as a tensor on the device."""
        return torch.as_tensor(values, dtype=torch.long, device=self.device)
