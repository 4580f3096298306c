"""Loads a model with everything in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from flexgen_helm.model.cache_format import place_cache
from flexgen_helm.model.dtypes import DTYPES
from flexgen_helm.model.opening import open_weights
from flexgen_helm.offload.disk import aligned_buffer
from flexgen_helm.offload.link import Link, link_to
from flexgen_helm.offload.spill import Spill
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.planner.setup import Setup
from flexgen_helm.quant import kernels, prepacked
from flexgen_helm.runtime.allocator import loading_weights
from flexgen_helm.runtime.arrangement import Arrangement
from flexgen_helm.runtime.cuda_graphs import capture_on
from flexgen_helm.runtime.detokenizer import Tokenizer
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.chunks import spill_memory
from flexgen_helm.specs.placement import ON_DEVICE, Tier
from flexgen_helm.specs.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Loader:
    """What all loads of a checkpoint have in common."""

    path: Path
    setup: Setup
    dtype: str
    device: torch.device
    budget: MemoryBudget
    offload_dir: Path
    tokenizer: Callable[[], Tokenizer]
    """Waits for it."""

    measured_few_rows: Callable[[Policy], int | None]
    """See `Arranger.few_rows`."""

    def load(self, arrangement: Arrangement, on_part: Callable[[], object] = lambda: None) -> Model:
        """Load the checkpoint as arranged; `on_part` is called after each part.

        Raises:
            CheckpointError: the checkpoint is incomplete or damaged.
            StoreError: the weight store is damaged, or its disk cannot be used.
        """
        spec, policy, waiting = self.setup.spec, arrangement.policy, Waiting()
        link = link_to(self.device, waiting, overlap=policy.overlap)
        at_once = policy.spilled_at_once(spec.num_layers, linked=link is not None)
        with loading_weights():
            weights = open_weights(
                self.path,
                spec,
                self.setup.compression,
                policy,
                dtype=self.dtype,
                device=self.device,
                offload_dir=self.offload_dir,
                on_part=on_part,
                link=link,
                waiting=waiting,
            )
            tokenizer = self.tokenizer()  # what loading it leaves behind is given back, too
        on_device = policy.cache == ON_DEVICE
        return Model(
            spec=spec,
            weights=weights,
            tokenizer=tokenizer,
            compression=self.setup.compression,
            dtype=DTYPES[self.dtype],
            device=self.device,
            few_rows=self._few_rows(policy),
            cache_tiers=[] if on_device else place_cache(spec.num_layers, policy.cache),
            attention_on_host=policy.attention == "host",
            spill=self._spill(arrangement, at_once, link, waiting) if policy.spills else None,
            spilled_at_once=at_once,
            link=link,
            capture=capture_on(self.device) if self.setup.captures_decode(policy) else None,
            waiting=waiting,
        )

    def _few_rows(self, policy: Policy) -> int:
        if kernels.run_on(self.device):
            return kernels.FEW_ROWS
        compression, dtype = self.setup.compression, DTYPES[self.dtype]
        by_default = prepacked.few_rows(compression.weight_bits, compression.group_size, dtype)
        measured = self.measured_few_rows(policy) if by_default else None
        return by_default if measured is None else measured

    def _spill(
        self, arrangement: Arrangement, at_once: int, link: Link | None, waiting: Waiting
    ) -> Spill:
        on_disk = self.budget.on(Tier.DISK)
        limit = None if on_disk is None else on_disk - arrangement.memory.weights_on_disk
        return Spill(
            self.offload_dir,
            overlap=arrangement.policy.overlap,
            limit_bytes=limit,
            memory_bytes=spill_memory(at_once),
            waiting=waiting,
            make_buffer=aligned_buffer if link is None else link.buffer,
        )
