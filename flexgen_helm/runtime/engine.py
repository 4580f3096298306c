"""The library API: load a model once, generate for many requests at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from flexgen_helm.errors import BudgetError, EngineClosedError, InvalidRequestError
from flexgen_helm.model.cache_format import place_cache
from flexgen_helm.model.checkpoint import fingerprint, read_spec, resolve
from flexgen_helm.model.dtypes import DTYPES, resolve_device, resolve_dtype
from flexgen_helm.model.opening import DEFAULT_OFFLOAD_DIR, open_weights
from flexgen_helm.offload.spill import Spill
from flexgen_helm.planner.memory import (
    MemoryPlan,
    allowed_beside,
    nearest_policy,
    plan_memory,
)
from flexgen_helm.planner.setup import Setup
from flexgen_helm.runtime.allocator import reuse_freed_memory
from flexgen_helm.runtime.executor import BlockExecutor
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.memory_watch import MemoryWatch
from flexgen_helm.runtime.progress import OnProgress, Progress, progress_reporter
from flexgen_helm.runtime.statistics import memory_bytes
from flexgen_helm.runtime.tokenizer import checkpoint_tokenizer
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.placement import ON_DEVICE, Tier
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import EngineDescription, GenerationRequest, GenerationResult


class Engine:
    """Generates completions and scores prompts with one model.

    >>> engine = Engine.from_pretrained("facebook/opt-125m", compression=Compression(weight_bits=4))
    >>> prompt = engine.tokenizer("The capital of France is").input_ids
    >>> [result] = engine.generate([GenerationRequest(prompt_token_ids=prompt)])
    >>> result.completions[0].text

    Made by `from_pretrained`. Calls from several threads are served one after another.
    """

    def __init__(
        self,
        model: Model,
        description: EngineDescription,
        policy: Policy,
        plan: MemoryPlan,
        watch: MemoryWatch | None = None,
    ) -> None:
        self._model: Model | None = model
        self._watch = watch
        self._cache_tokens = plan.cache_tokens
        self.policy = policy
        """Shape of the blocks, and where everything is. Micro-batches become smaller, with a
        warning, where memory turns out to be short."""
        self.plan = plan
        """Memory that this takes."""
        self._lock = threading.Lock()
        self.description = description
        """What this engine is, for tables."""
        self.tokenizer: Any = model.tokenizer
        """The checkpoint's tokenizer (a transformers tokenizer); it adds the BOS token."""
        self.max_positions = model.spec.max_positions
        """Prompt tokens the model can take at most, BOS included."""
        self._vocab_size = model.spec.vocab_size

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        compression: Compression | None = None,
        dtype: str = "auto",
        device: str = "auto",
        policy: Policy | None = None,
        budget: MemoryBudget | None = None,
        offload_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Engine:
        """Load a checkpoint.

        With weights on disk or in the host's memory it is converted into a weight store first,
        unless that has been done; see `flexgen-helm convert`.

        Args:
            model: hub id, or directory with `config.json`, weights and tokenizer.
            compression: of weights and KV cache; none if left out.
            dtype: compute dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the
                fastest the device computes well in.
            device: ``cpu``, ``cuda``, ``cuda:1`` ..., or ``auto`` for CUDA where there is one.
            policy: shape of the blocks, and where weights, KV cache and activations are; if left
                out, the one nearest to having all of it on the device that fits the budget.
            budget: memory that may be used, beside what the process takes already; if left out,
                half of the memory that is free after loading for the KV cache.
            offload_dir: where weight stores are; `~/.cache/flexgen_helm` if left out.
            progress: whether to show a progress bar while loading.

        Raises:
            CheckpointError: the checkpoint is missing, incomplete or damaged.
            UnsupportedModelError: its architecture is not one this engine runs.
            InvalidSettingError: there is no such dtype.
            BudgetError: the policy takes more memory than the budget allows.
            StoreError: the weight store is damaged, or its disk cannot be used.
        """
        reuse_freed_memory()
        compression = compression or Compression()
        offload = Path(offload_dir or DEFAULT_OFFLOAD_DIR).expanduser()
        path = resolve(model)
        spec = read_spec(path)
        device = resolve_device(device)
        dtype = resolve_dtype(dtype, device)
        setup = Setup(
            spec=spec,
            compression=compression,
            dtype_bytes=DTYPES[dtype].itemsize,
            unified=torch.device(device).type == "cpu",
        )
        budget = budget or MemoryBudget()
        allowed = allowed_beside(setup, budget, Tier.DEVICE)
        before = memory_bytes(torch.device(device))
        policy = policy or nearest_policy(setup, Policy(), budget) or Policy()
        plan = plan_memory(setup, policy, budget)
        with (
            ThreadPoolExecutor() as beside,
            tqdm(total=spec.num_layers + 1, unit="layer", disable=not progress) as bar,
        ):
            tokenizer, digest = (
                beside.submit(f, path) for f in (checkpoint_tokenizer, fingerprint)
            )
            bar.set_description(f"loading {model}")
            weights = open_weights(
                path,
                spec,
                compression,
                policy,
                dtype=dtype,
                device=torch.device(device),
                offload_dir=offload,
                on_part=partial(bar.update, 1),
            )
        description = EngineDescription(
            model=str(model),
            fingerprint=digest.result(),
            compression=compression.label,
            dtype=dtype,
            device=device,
            num_parameters=spec.num_parameters,
            weight_bytes=weights.num_bytes,
            linear_weight_bytes=weights.linear_bytes,
        )
        spill = None
        if policy.spills:
            on_disk = budget.on(Tier.DISK)
            limit = None if on_disk is None else on_disk - plan.weights_on_disk
            spill = Spill(offload, overlap=policy.overlap, limit_bytes=limit)
        on_device = policy.cache == ON_DEVICE
        loaded = Model(
            spec=spec,
            weights=weights,
            tokenizer=tokenizer.result(),
            compression=compression,
            dtype=DTYPES[dtype],
            device=torch.device(device),
            cache_tiers=[] if on_device else place_cache(spec.num_layers, policy.cache),
            attention_on_host=policy.attention == "host",
            spill=spill,
        )
        watch = None if allowed is None else MemoryWatch(loaded.device, before + allowed)
        return cls(loaded, description, policy, plan, watch)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        progress: OnProgress | bool | None = None,
        on_result: Callable[[int, GenerationResult], None] | None = None,
    ) -> list[GenerationResult]:
        """Serve all requests and return their results in order.

        A result does not depend on which other requests were given with it, nor on their order.

        Args:
            requests: any mix of prompts, sampling parameters and stops.
            progress: `True` for a progress bar, or a function called as requests finish.
            on_result: called with index and result as soon as a request finishes, so that nothing
                is lost if a later one fails.

        Raises:
            InvalidRequestError: one of them cannot be served; nothing has been computed then.
            NumericsError: the model computed NaN.
            EngineClosedError: the engine was closed.
        """
        requests = list(requests)
        for request in requests:
            self.validate(request)
            self._check_cache(request)
        results: dict[int, GenerationResult] = {}
        generated_tokens = 0
        with self._lock, progress_reporter(progress, len(requests)) as report:

            def finish(index: int, result: GenerationResult) -> None:
                nonlocal generated_tokens
                results[index] = result
                generated_tokens += result.statistics.num_generated_tokens
                if on_result is not None:
                    on_result(index, result)
                report(
                    Progress(
                        finished=len(results),
                        total=len(requests),
                        generated_tokens=generated_tokens,
                    )
                )

            executor = BlockExecutor(
                self._open_model(), self.policy, self._cache_tokens, self._watch
            )
            try:
                executor.run(requests, finish)
            finally:
                if executor.policy != self.policy:  # memory was short
                    self.policy, self._cache_tokens = executor.policy, executor.cache_tokens
        return [results[index] for index in range(len(requests))]

    def validate(self, request: GenerationRequest) -> None:
        """Check a request against the model's limits.

        Raises:
            InvalidRequestError: the prompt is longer than the positions, or holds an id that is
                no token of the model.
        """
        num_tokens = len(request.prompt_token_ids)
        if num_tokens > self.max_positions:
            raise InvalidRequestError(
                f"prompt has {num_tokens} tokens, the model has {self.max_positions} positions:"
                " shorten the prompt (in HELM: fewer in-context examples)"
            )
        for token_id in (min(request.prompt_token_ids), max(request.prompt_token_ids)):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequestError(
                    f"prompt_token_ids holds {token_id}, the model knows ids 0 to"
                    f" {self._vocab_size - 1}: encode the prompt with this engine's tokenizer"
                )

    def _check_cache(self, request: GenerationRequest) -> None:
        """Refuse what the budget has no room for, however little is computed at once."""
        new_tokens = min(request.sampling.max_tokens, self.max_positions)
        if self.plan.cache_tokens is None or new_tokens < 2:
            return
        num_tokens = len(request.prompt_token_ids) + (
            request.sampling.num_completions * (new_tokens - 1)
        )
        if num_tokens > self.plan.cache_tokens:
            raise BudgetError(
                f"a request needs {num_tokens} tokens in the KV cache, the budget has room for"
                f" {self.plan.cache_tokens}: allow more memory, put the cache on disk"
                " (policy.cache), or compress it (such as kv4)"
            )

    def close(self) -> None:
        """Free the model's memory. Later calls of `generate` raise `EngineClosedError`."""
        with self._lock:
            if self._model is not None:
                self._model.close()
                self._model = None

    def _open_model(self) -> Model:
        if self._model is None:
            raise EngineClosedError(
                f"engine of {self.description.model!r} is closed: load the model again"
            )
        return self._model

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
