"""A model ready to compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen_helm.model.kv_cache import CacheFormat
from flexgen_helm.offload.weights import WeightSource
from flexgen_helm.runtime.detokenizer import Tokenizer
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

    @property
    def cache_format(self) -> CacheFormat:
        """How its keys and values are stored."""
        return CacheFormat(
            spec=self.spec, compression=self.compression, dtype=self.dtype, device=self.device
        )

    def indices(self, values: object) -> Tensor:
        """Integers as a tensor on the device."""
        return torch.as_tensor(values, dtype=torch.long, device=self.device)
