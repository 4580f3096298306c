"""The library API: load a model once, generate for many requests at a time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from flexgen_helm.errors import (
    BudgetError,
    EngineClosedError,
    FlexGenError,
    InvalidRequestError,
    InvalidSettingError,
)
from flexgen_helm.model.checkpoint import fingerprint, read_spec, resolve
from flexgen_helm.model.dtypes import DTYPES, device_of, resolve_device, resolve_dtype
from flexgen_helm.model.opening import DEFAULT_OFFLOAD_DIR
from flexgen_helm.planner.memory import MemoryPlan, allowed_beside
from flexgen_helm.planner.setup import Setup
from flexgen_helm.quant import kernels
from flexgen_helm.runtime.allocator import keep_few_kernels, reuse_freed_memory
from flexgen_helm.runtime.arrangement import Arrangement, Arranger, Expected
from flexgen_helm.runtime.device_cap import cap_device_memory
from flexgen_helm.runtime.executor import BlockExecutor, OnResult
from flexgen_helm.runtime.lengths import DEFAULT_WORKLOAD, cached_tokens, workload_of
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.loader import Loader
from flexgen_helm.runtime.memory_watch import MemoryWatch
from flexgen_helm.runtime.progress import OnProgress, Progress, progress_reporter
from flexgen_helm.runtime.statistics import memory_bytes
from flexgen_helm.runtime.tokenizer import checkpoint_tokenizer
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.placement import Tier
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import EngineDescription, GenerationRequest, GenerationResult
from flexgen_helm.specs.workload import Workload

OnError = Callable[[int, FlexGenError], None]


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
        arrangement: Arrangement,
        arranger: Arranger,
        loader: Loader,
        watch: MemoryWatch | None = None,
        *,
        automatic: bool = False,
    ) -> None:
        self._model: Model | None = model
        self._watch = watch
        self._arranger, self._loader = arranger, loader
        self._automatic, self._planned = automatic, False
        self._set(arrangement)
        self._lock = threading.Lock()
        self.description = description
        """What this engine is, for tables."""
        self.tokenizer: Any = model.tokenizer
        """The checkpoint's tokenizer (a transformers tokenizer); it adds the BOS token."""
        self.max_positions = model.spec.max_positions
        """Prompt tokens the model can take at most, BOS included."""
        self._vocab_size = model.spec.vocab_size
        self.num_layers = model.spec.num_layers

    def _set(self, arrangement: Arrangement) -> None:
        self._arrangement = arrangement
        self._cache_tokens = arrangement.memory.cache_tokens
        self.policy = arrangement.policy
        """Shape of the blocks, and where everything is. Micro-batches become smaller, with a
        warning, where memory turns out to be short."""
        self.plan: MemoryPlan = arrangement.memory
        """Memory that this takes."""
        self.prediction = arrangement.plan
        """How long it was predicted to take, if it was planned."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        compression: Compression | str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        policy: Policy | Literal["auto"] | None = "auto",
        budget: MemoryBudget | None = None,
        offload_dir: str | os.PathLike[str] | None = None,
        hardware: Hardware | None = None,
        requests: Sequence[GenerationRequest] = (),
        progress: bool = False,
    ) -> Engine:
        """Load a checkpoint.

        With weights on disk or in the host's memory it is converted into a weight store first,
        unless that has been done; see `flexgen-helm convert`.

        Args:
            model: hub id, or directory with `config.json`, weights and tokenizer.
            compression: of weights and KV cache, or a label such as ``w4-kv4``; none if left out.
            dtype: compute dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the
                fastest the device computes well in.
            device: ``cpu``, ``cuda``, ``cuda:1`` ..., or ``auto`` for CUDA where there is one.
            policy: shape of the blocks, and where weights, KV cache and activations are; ``auto``
                for all of it on the device where that fits, else for what is planned to take the
                least time, planned once more when the first requests are known, and whenever it has
                no room for those to come.
            budget: memory that may be used, beside what the process takes already; if left out,
                half of the memory that is free after loading for the KV cache.
            offload_dir: where weight stores are; `~/.cache/flexgen_helm` if left out.
            hardware: what is planned with; if left out, what `flexgen-helm calibrate` has measured
                or, where it has not been run, figures of another machine.
            requests: the first ones, if they are known already: what is planned for them need not
                be planned, and loaded, again.
            progress: whether to show a progress bar while loading.

        Raises:
            CheckpointError: the checkpoint is missing, incomplete or damaged.
            UnsupportedModelError: its architecture is not one this engine runs.
            InvalidSettingError: there is no such device, dtype, compression or policy.
            BudgetError: the policy takes more memory than the budget allows, or none takes less.
            PlanningError: no policy could be planned.
            StoreError: the weight store is damaged, or its disk cannot be used.
        """
        if not isinstance(policy, Policy) and policy not in ("auto", None):
            raise InvalidSettingError(
                f"policy={policy!r} is not understood: give a Policy, or 'auto' to have one planned"
            )
        reuse_freed_memory()
        if isinstance(compression, str):
            compression = Compression.parse(compression)
        offload = Path(offload_dir or DEFAULT_OFFLOAD_DIR).expanduser()
        path = resolve(model)
        spec = read_spec(path)
        device = resolve_device(device)
        where = device_of(device)
        dtype = resolve_dtype(dtype, device)
        setup = _setup(spec, compression or Compression(), dtype, where)
        budget = budget or MemoryBudget()
        allowed, before = allowed_beside(setup, budget, Tier.DEVICE), memory_bytes(where)
        _limit_memory(where, before, allowed)
        arranger = Arranger(setup, budget, where, dtype, offload, hardware)
        if isinstance(policy, Policy):
            arrangement = arranger.with_policy(policy)
        else:
            known = workload_of(requests, spec.max_positions) if requests else DEFAULT_WORKLOAD
            arrangement = arranger.plan(known)
        with ThreadPoolExecutor() as beside:
            tokenizer, digest = (
                beside.submit(f, path) for f in (checkpoint_tokenizer, fingerprint)
            )
            loader = Loader(
                path=path,
                setup=setup,
                dtype=dtype,
                device=where,
                budget=budget,
                offload_dir=offload,
                tokenizer=tokenizer.result,
            )
            loaded = _load(loader, arrangement, f"loading {model}" if progress else None)
        engine = cls(
            loaded,
            _describe(loaded, name=str(model), digest=digest.result(), dtype=dtype, device=device),
            arrangement,
            arranger,
            loader,
            None if allowed is None else MemoryWatch(where, before, allowed),
            automatic=not isinstance(policy, Policy),
        )
        if requests:
            engine._tell_plan()
        return engine

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        progress: OnProgress | bool | None = None,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
    ) -> list[GenerationResult]:
        """Serve all requests and return their results in order.

        A result does not depend on which other requests were given with it, nor on their order.

        Args:
            requests: any mix of prompts, sampling parameters and stops.
            progress: `True` for a progress bar, or a function called as requests finish.
            on_result: called with index and result as soon as a request finishes, so that nothing
                is lost if a later one fails.
            on_error: called with index and error of each request that cannot be served; the others
                are then, and what is returned are their results. If left out, the first such error
                is raised.

        Raises:
            InvalidRequestError: one of them cannot be served; nothing has been computed then.
            BudgetError: there is no memory for one of them, likewise; or a policy that was given
                has none for them together, which `on_error` is not asked about.
            PlanningError: what was to be planned for them could not be.
            NumericsError: the model computed NaN.
            EngineClosedError: the engine was closed.
        """
        every = dict(enumerate(requests))
        valid = _passing(self.validate, every, on_error)
        if not valid:
            return []
        with self._lock:
            workload = workload_of(list(valid.values()), self.max_positions)
            self._plan_ahead(workload)
            served = _passing(self._refuse, valid, on_error)
            if not served:
                return []
            expected = self._arranger.expect(self._arrangement, workload)
            return self._serve(served, expected, progress, on_result or _ignore)

    def _serve(
        self,
        requests: Mapping[int, GenerationRequest],
        expected: Callable[[GenerationRequest], Expected],
        progress: OnProgress | bool | None,
        on_result: OnResult,
    ) -> list[GenerationResult]:
        results: dict[int, GenerationResult] = {}
        generated_tokens = 0
        executor = BlockExecutor(self._open_model(), self.policy, self._cache_tokens, self._watch)
        with progress_reporter(progress, len(requests)) as report:

            def finish(index: int, result: GenerationResult) -> None:
                nonlocal generated_tokens
                costs = replace(result.statistics, **expected(requests[index])._asdict())
                results[index] = result = replace(result, statistics=costs)
                generated_tokens += costs.num_generated_tokens
                on_result(index, result)
                report(
                    Progress(
                        finished=len(results),
                        total=len(requests),
                        generated_tokens=generated_tokens,
                    )
                )

            try:
                executor.run(requests, finish)
            finally:
                if executor.policy != self.policy:  # memory was short
                    self.policy, self._cache_tokens = executor.policy, executor.cache_tokens
        return [results[index] for index in requests]

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

    def _refuse(self, request: GenerationRequest) -> None:
        """Refuse what the budget has no room for, however little is computed at once."""
        most, needed = self.plan.cache_tokens, cached_tokens(request, self.max_positions)
        if most is not None and needed > most:
            raise BudgetError(
                f"a request needs {needed} tokens in the KV cache, the budget has room for {most}:"
                " allow more memory, put the cache on disk (policy.cache), or compress it (such as"
                " kv4)"
            )

    def _plan_ahead(self, workload: Workload) -> None:
        """See what requests take, and choose another policy if they are the first or need it."""
        if self.policy != self._arrangement.policy:
            return  # memory was short, and what there is room for is known better than from a plan
        first = self.prediction is not None and not self._planned
        arrangement = None if first and self._automatic else self._for_present_policy(workload)
        if arrangement is None:
            self._plan_for(workload)
        else:
            self._set(arrangement)

    def _for_present_policy(self, workload: Workload) -> Arrangement | None:
        """Return what it takes; `None` if it may be another and has no room for every request."""
        try:
            arrangement = self._arranger.with_policy(self.policy, workload)
        except BudgetError:
            if not self._automatic:
                raise
            return None
        tokens = arrangement.memory.cache_tokens
        if self._automatic and tokens is not None and workload.most_cached > tokens:
            return None
        return replace(arrangement, plan=self.prediction)

    def _plan_for(self, workload: Workload) -> None:
        """Plan once more, now that requests are known, and say what was planned."""
        arrangement = self._arranger.plan(workload)
        if arrangement.policy != self.policy:
            self._open_model().close()
            self._model = None
            self._model = self._loader.load(arrangement)
        self._set(arrangement)
        self._tell_plan()

    def _tell_plan(self) -> None:
        """Say what was planned for requests, if anything was."""
        self._planned = True
        if self.prediction is not None:
            tqdm.write(self.prediction.summary, file=sys.stderr)

    def close(self) -> None:
        """Free the model's memory. Later calls of `generate` raise `EngineClosedError`."""
        with self._lock:
            if self._model is not None:
                self._model.close()
                cap_device_memory(self._model.device, None)
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


def _setup(spec: ModelSpec, compression: Compression, dtype: str, device: torch.device) -> Setup:
    """Return what is planned for on a device."""
    return Setup(
        spec=spec,
        compression=compression,
        dtype_bytes=DTYPES[dtype].itemsize,
        unified=device.type == "cpu",
        has_attention_kernel=kernels.can_attend(
            compression.cache_bits, compression.group_size, spec.head_size, device
        ),
    )


def _limit_memory(device: torch.device, before_bytes: int, allowed_bytes: int | None) -> None:
    """Have libraries keep to what is allowed beside what is used already; `None` for no limit."""
    if allowed_bytes is not None and device.type == "cpu":
        keep_few_kernels(allowed_bytes)
    cap_device_memory(device, None if allowed_bytes is None else before_bytes + allowed_bytes)


def _load(loader: Loader, arrangement: Arrangement, shown: str | None) -> Model:
    """Load a model; with a progress bar of that name, if there is one."""
    num_parts = loader.setup.spec.num_layers + 1
    with tqdm(total=num_parts, desc=shown, unit="layer", disable=shown is None) as bar:
        return loader.load(arrangement, on_part=partial(bar.update, 1))


def _describe(
    model: Model, *, name: str, digest: str, dtype: str, device: str
) -> EngineDescription:
    return EngineDescription(
        model=name,
        fingerprint=digest,
        compression=model.compression.label,
        dtype=dtype,
        device=device,
        num_parameters=model.spec.num_parameters,
        weight_bytes=model.weights.num_bytes,
        linear_weight_bytes=model.weights.linear_bytes,
    )


def _passing(
    check: Callable[[GenerationRequest], None],
    requests: Mapping[int, GenerationRequest],
    on_error: OnError | None,
) -> dict[int, GenerationRequest]:
    """Return those that pass a check, and tell of others, or raise the error of the first."""
    passing = {}
    for index, request in requests.items():
        try:
            check(request)
        except FlexGenError as error:
            if on_error is None:
                raise
            on_error(index, error)
        else:
            passing[index] = request
    return passing


def _ignore(index: int, result: GenerationResult) -> None:
    pass
