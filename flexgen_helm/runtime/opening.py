"""Opening a checkpoint: what an engine is made of, within the memory it may use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from flexgen_helm.model.checkpoint import fingerprint, read_spec, resolve
from flexgen_helm.model.dtypes import DTYPES, device_of, resolve_device, resolve_dtype
from flexgen_helm.planner.memory import allowed_beside
from flexgen_helm.planner.setup import Setup
from flexgen_helm.quant import kernels
from flexgen_helm.runtime.allocator import keep_few_kernels, reuse_freed_memory
from flexgen_helm.runtime.arranged_model import ArrangedModel
from flexgen_helm.runtime.arrangement import Arrangement, Arranger
from flexgen_helm.runtime.device_cap import cap_device_memory
from flexgen_helm.runtime.lengths import DEFAULT_WORKLOAD, workload_of
from flexgen_helm.runtime.loaded_model import Model
from flexgen_helm.runtime.loader import Loader
from flexgen_helm.runtime.memory_watch import MemoryWatch
from flexgen_helm.runtime.statistics import memory_bytes
from flexgen_helm.runtime.tokenizer import checkpoint_tokenizer
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.placement import Tier
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import EngineDescription, GenerationRequest


class Opened(NamedTuple):
    """What an engine is made of."""

    model: ArrangedModel
    description: EngineDescription
    watch: MemoryWatch | None
    """`None` where there is no limit."""


def open_model(
    model: str | os.PathLike[str],
    *,
    compression: Compression,
    dtype: str,
    device: str,
    policy: Policy | None,
    budget: MemoryBudget,
    offload_dir: Path,
    hardware: Hardware | None,
    requests: Sequence[GenerationRequest],
    progress: bool,
) -> Opened:
    """Load a checkpoint with everything in its place.

    See `Engine.from_pretrained` for arguments and errors; a policy is planned where it is `None`.
    """
    reuse_freed_memory()
    path = resolve(model)
    spec = read_spec(path)
    device = resolve_device(device)
    where = device_of(device)
    dtype = resolve_dtype(dtype, device)
    setup = _setup(spec, compression, dtype, where)
    allowed, before = allowed_beside(setup, budget, Tier.DEVICE), memory_bytes(where)
    _limit_memory(where, before, allowed)
    arranger = Arranger(setup, budget, where, dtype, offload_dir, hardware)
    arrangement = _arrange(arranger, policy, requests, spec)
    with ThreadPoolExecutor() as beside:
        tokenizer, digest = (beside.submit(f, path) for f in (checkpoint_tokenizer, fingerprint))
        loader = Loader(
            path=path,
            setup=setup,
            dtype=dtype,
            device=where,
            budget=budget,
            offload_dir=offload_dir,
            tokenizer=tokenizer.result,
            measured_few_rows=arranger.few_rows,
        )
        loaded = _load(loader, arrangement, f"loading {model}" if progress else None)
    arranged = ArrangedModel(loaded, arrangement, arranger, loader, automatic=policy is None)
    if requests:
        arranged.tell_plan()
    return Opened(
        arranged,
        _describe(loaded, name=str(model), digest=digest.result(), dtype=dtype, device=device),
        None if allowed is None else MemoryWatch(where, before, allowed),
    )


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


def _arrange(
    arranger: Arranger,
    policy: Policy | None,
    requests: Sequence[GenerationRequest],
    spec: ModelSpec,
) -> Arrangement:
    """Decide what goes where, for the first requests if they are known."""
    if policy is not None:
        return arranger.with_policy(policy)
    known = workload_of(requests, spec.max_positions) if requests else DEFAULT_WORKLOAD
    return arranger.plan(known)


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
