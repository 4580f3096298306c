"""The process of a trial: reads what is asked for as JSON, and prints an `Outcome` as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flexgen_helm.bench.generation import token_times
from flexgen_helm.bench.memory_limit import join
from flexgen_helm.bench.trial import ACCELERATE, OURS, TRANSFORMERS, Outcome, Trial, UniformWorkload

SPARE_BYTES = 64 << 20
"""Left free below a limit: for what the process needs beside the engine."""


def main(request: str) -> None:
    """Carry out what a request asks for."""
    asked = json.loads(request)
    trial = Trial(**{**asked["trial"], "workload": UniformWorkload(*asked["trial"]["workload"])})
    if asked["group"] is not None:
        join(Path(asked["group"]))  # first of all, so that everything counts
    system = {OURS: _ours, TRANSFORMERS: _transformers, ACCELERATE: _accelerate}[trial.system]
    outcome = system(trial, Path(asked["checkpoint"]), Path(asked["directory"]))
    print(json.dumps(asdict(outcome)))


def _ours(trial: Trial, checkpoint: Path, directory: Path) -> Outcome:
    import torch

    from flexgen_helm.bench.tree import random_prompts
    from flexgen_helm.runtime.engine import Engine
    from flexgen_helm.runtime.statistics import peak_memory_bytes, resident_bytes
    from flexgen_helm.runtime.tokenizer import checkpoint_tokenizer
    from flexgen_helm.specs.budget import MemoryBudget
    from flexgen_helm.specs.compression import Compression
    from flexgen_helm.specs.placement import Tier
    from flexgen_helm.specs.policy import Policy
    from flexgen_helm.specs.request import GenerationRequest, SamplingParams

    checkpoint_tokenizer(checkpoint)  # imports what any user of transformers has in memory
    prompts = random_prompts(trial.batch, shared=0, own=trial.workload.prompt_len)
    sampling = SamplingParams(max_tokens=trial.workload.new_tokens)
    requests = [GenerationRequest(prompt_token_ids=p.tolist(), sampling=sampling) for p in prompts]
    before = resident_bytes()
    limit = trial.memory_limit_bytes
    with Engine.from_pretrained(
        checkpoint,
        compression=Compression.parse(trial.compression),
        device="cpu",
        policy=Policy.from_settings(trial.policy),
        budget=MemoryBudget(host=limit - before - SPARE_BYTES if limit else None),
        offload_dir=directory,
    ) as engine:
        costs = [result.statistics for result in engine.generate(requests)]
        plan = engine.plan
    cached = trial.batch * (trial.workload.prompt_len + trial.workload.new_tokens - 1)
    if trial.workload.new_tokens == 1:
        cached = 0
    if plan.cache_tokens is not None:
        cached = min(cached, plan.cache_tokens)
    planned = plan.bytes_on((Tier.DEVICE, Tier.HOST), cached_tokens=cached)
    return Outcome(
        prefill_s=sum(cost.prefill_s for cost in costs),
        decode_s=sum(cost.decode_s for cost in costs),
        generated_tokens=sum(cost.num_generated_tokens for cost in costs),
        memory_bytes=peak_memory_bytes(torch.device("cpu")) - before,
        planned_bytes=round(planned),
        disk_bytes=max(cost.peak_disk_bytes for cost in costs),
    )


def _transformers(trial: Trial, checkpoint: Path, _: Path) -> Outcome:
    return _generate(trial, checkpoint, {})


def _accelerate(trial: Trial, checkpoint: Path, directory: Path) -> Outcome:
    from flexgen_helm.model.checkpoint import read_spec

    decoder = "model.decoder"
    in_memory = ("embed_tokens", "embed_positions", "final_layer_norm")
    layers = range(read_spec(checkpoint).num_layers)
    device_map = {
        "lm_head": "cpu",
        **{f"{decoder}.{name}": "cpu" for name in in_memory},
        **{f"{decoder}.layers.{index}": "disk" for index in layers},
    }
    folder = directory / "accelerate"
    return _generate(trial, checkpoint, {"device_map": device_map, "offload_folder": folder})


def _generate(trial: Trial, checkpoint: Path, loading: dict[str, Any]) -> Outcome:
    import torch
    from transformers import AutoModelForCausalLM

    from flexgen_helm.bench.tree import random_prompts
    from flexgen_helm.model.dtypes import resolve_dtype
    from flexgen_helm.runtime.statistics import peak_memory_bytes, resident_bytes

    prompts = random_prompts(trial.batch, shared=0, own=trial.workload.prompt_len)
    input_ids = torch.from_numpy(prompts).long()
    before = resident_bytes()
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=resolve_dtype("auto", "cpu"), **loading
    )
    times = token_times(model, input_ids, trial.workload.new_tokens)
    return Outcome(
        prefill_s=times[1] - times[0],
        decode_s=times[-1] - times[1],
        generated_tokens=trial.batch * (len(times) - 1),
        memory_bytes=peak_memory_bytes(torch.device("cpu")) - before,
    )


if __name__ == "__main__":
    main(sys.argv[1])
