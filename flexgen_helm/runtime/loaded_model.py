"""A model ready to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from flexgen_helm.model.cache_format import CacheFormat, KeysValuesTiers
from flexgen_helm.offload.link import Link
from flexgen_helm.offload.spill import Spill
from flexgen_helm.offload.waiting import Waited, Waiting
from flexgen_helm.offload.weights import WeightSource
from flexgen_helm.runtime.cuda_graphs import Capture
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

    few_rows: int = 0
    """Rows of a pass up to which weights are multiplied with as they are stored, where they can
    be."""

    attention_on_host: bool = False
    """Whether sequences in decode attend to their own keys and values in the host's memory."""

    spill: Spill | None = None
    """Where what a policy has on disk is, beside weights."""

    spilled_at_once: int = MOST_SPILLED_AT_ONCE
    """Bytes of keys, or of values, of a layer that are read from disk at once."""

    link: Link | None = None
    """To the device; `None` where it has the host's memory."""

    capture: Capture | None = None
    """Captures passes that repeat; `None` where each is computed step by step."""

    waiting: Waiting = field(default_factory=Waiting)
    """For disk and link."""

    @cached_property
    def cache_format(self) -> CacheFormat:
        """How its keys and values are stored."""
        return CacheFormat(
            spec=self.spec,
            compression=self.compression,
            dtype=self.dtype,
            device=self.device,
            tiers=self.cache_tiers,
            spill=self.spill,
            link=self.link,
        )

    @property
    def waited(self) -> Waited:
        """How long computing has stood still so far."""
        if self.link is not None:
            self.link.settle()
        return self.waiting.so_far

    @property
    def to_device_bytes(self) -> int:
        """What has been copied to the device so far."""
        return 0 if self.link is None else self.link.to_device_bytes

    @property
    def attends_apart(self) -> bool:
        """Whether the host attends while the device computes."""
        dense = self.compression.dense_attention
        return self.link is not None and self.attention_on_host and dense

    @property
    def reads_one_by_one(self) -> bool:
        """Whether pools of a micro-batch in decode are read, and attended to, one after another.

        A device multiplies with few rows as fast as with many: what is read at once, which takes
        its memory, should not say how many there are.
        """
        dense = self.compression.dense_attention
        return self.link is not None and not self.attention_on_host and dense

    @property
    def attention_device(self) -> torch.device:
        """Where sequences in decode attend to their own keys and values."""
        return torch.device("cpu") if self.attention_on_host else self.device

    def close(self) -> None:
        """Give back memory and disk."""
        self.weights.close()
        if self.link is not None:
            self.link.close()
        if self.spill is not None:
            self.spill.close()

    def indices(self, values: object) -> Tensor:
        """Integers as a tensor on the device."""
        return torch.as_tensor(values, dtype=torch.long, device=self.device)
