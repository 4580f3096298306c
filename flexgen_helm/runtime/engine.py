"""The library API: load a model once, generate for many requests at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flexgen_helm.errors import (
    BudgetError,
    EngineClosedError,
    FlexGenError,
    InvalidRequestError,
    InvalidSettingError,
)
from flexgen_helm.model.opening import DEFAULT_OFFLOAD_DIR
from flexgen_helm.planner.memory import MemoryPlan
from flexgen_helm.planner.plan import Plan
from flexgen_helm.runtime.arranged_model import ArrangedModel
from flexgen_helm.runtime.arrangement import Expected
from flexgen_helm.runtime.device_cap import cap_device_memory
from flexgen_helm.runtime.executor import BlockExecutor, OnResult
from flexgen_helm.runtime.lengths import cached_tokens, workload_of
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.memory_watch import MemoryWatch
from flexgen_helm.runtime.opening import open_model
from flexgen_helm.runtime.progress import OnProgress, Progress, progress_reporter
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import EngineDescription, GenerationRequest, GenerationResult

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
        model: ArrangedModel,
        description: EngineDescription,
        watch: MemoryWatch | None = None,
    ) -> None:
        self._model, self._watch = model, watch
        self._lock = threading.Lock()
        self.description = description
        """What this engine is, for tables."""
        loaded = self._open_model()
        self.tokenizer: Any = loaded.tokenizer
        """The checkpoint's tokenizer (a transformers tokenizer); it adds the BOS token."""
        self.max_positions = loaded.spec.max_positions
        """Prompt tokens the model can take at most, BOS included."""
        self._vocab_size = loaded.spec.vocab_size
        self.num_layers = loaded.spec.num_layers

    @property
    def policy(self) -> Policy:
        """Shape of the blocks, and where everything is.

        Micro-batches become smaller, with a warning, where memory turns out to be short.
        """
        return self._model.policy

    @property
    def plan(self) -> MemoryPlan:
        """Memory that this takes."""
        return self._model.arrangement.memory

    @property
    def prediction(self) -> Plan | None:
        """How long it was predicted to take, if it was planned."""
        return self._model.arrangement.plan

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
        if isinstance(compression, str):
            compression = Compression.parse(compression)
        opened = open_model(
            model,
            compression=compression or Compression(),
            dtype=dtype,
            device=device,
            policy=policy if isinstance(policy, Policy) else None,
            budget=budget or MemoryBudget(),
            offload_dir=Path(offload_dir or DEFAULT_OFFLOAD_DIR).expanduser(),
            hardware=hardware,
            requests=requests,
            progress=progress,
        )
        return cls(*opened)

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
            self._open_model()  # or it would be loaded again, if only for another policy
            workload = workload_of(list(valid.values()), self.max_positions)
            self._model.arrange_for(workload)
            served = _passing(self._refuse, valid, on_error)
            if not served:
                return []
            expected = self._model.expect(workload)
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
        executor = BlockExecutor(
            self._open_model(), self.policy, self._model.cache_tokens, self._watch
        )
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
                self._model.make_do_with(executor.policy, executor.cache_tokens)
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

    def close(self) -> None:
        """Free the model's memory. Later calls of `generate` raise `EngineClosedError`."""
        with self._lock:
            if self._model.loaded is not None:
                device = self._model.loaded.device
                self._model.close()
                cap_device_memory(device, None)

    def _open_model(self) -> Model:
        if self._model.loaded is None:
            raise EngineClosedError(
                f"engine of {self.description.model!r} is closed: load the model again"
            )
        return self._model.loaded

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
