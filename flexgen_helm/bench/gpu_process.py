"""The process of a trial of ours or of accelerate: reads it as JSON, prints a `GpuOutcome`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from flexgen_helm.bench.generation import token_times
from flexgen_helm.bench.gpu_trial import ACCELERATE, OURS, PILOT_TOKENS, GpuOutcome, GpuTrial
from flexgen_helm.bench.gpu_workloads import Requests

if TYPE_CHECKING:
    import torch

    from flexgen_helm.specs.request import GenerationRequest

FIRST_TOKEN, VOCABULARY = 4, 250
"""Of random prompts: all models have these."""

WARM_REQUESTS, WARM_TOKENS = 4, 3

TRIALS_OF_A_SCENARIO = 3
"""Beginnings that prompts of a scenario share: HELM selects examples as often."""


def main(request: str) -> None:
    """Carry out what a request asks for."""
    asked = json.loads(request)
    wanted = [Requests(**requests) for requests in asked["trial"]["requests"]]
    trial = GpuTrial(**{**asked["trial"], "requests": wanted})
    system = {OURS: _ours, ACCELERATE: _accelerate}[trial.system]
    print(json.dumps(asdict(system(trial, asked))))


def prompts(requests: Requests) -> Iterator[list[int]]:
    """Yield prompts of random tokens, the same ones every time."""
    random = np.random.default_rng(crc32(requests.name.encode()))
    beginnings = random.integers(
        FIRST_TOKEN, VOCABULARY, (TRIALS_OF_A_SCENARIO, requests.shared)
    ).tolist()
    lengths = np.linspace(requests.least_own, requests.most_own, requests.count).round().astype(int)
    for index, length in enumerate(random.permutation(lengths)):
        own = random.integers(FIRST_TOKEN, VOCABULARY, length).tolist()
        yield [*beginnings[index % TRIALS_OF_A_SCENARIO], *own]


def _ours(trial: GpuTrial, asked: Mapping[str, Any]) -> GpuOutcome:
    from flexgen_helm.model.dtypes import device_of
    from flexgen_helm.runtime.engine import Engine
    from flexgen_helm.specs.budget import MemoryBudget
    from flexgen_helm.specs.hardware import Hardware
    from flexgen_helm.specs.request import GenerationRequest, SamplingParams

    runs = [
        [
            GenerationRequest(
                prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=wanted.new_tokens)
            )
            for prompt in prompts(wanted)
        ]
        for wanted in trial.requests
    ]
    requests = [*chain.from_iterable(runs)]
    if not trial.in_turn:
        runs = [requests]
    with Engine.from_pretrained(
        asked["checkpoint"],
        compression=trial.compression,
        device=asked["device"],
        budget=MemoryBudget(device=trial.cap_bytes),
        offload_dir=asked["directory"],
        hardware=Hardware.from_json(asked["hardware"], where="what was measured"),
        requests=requests,
    ) as engine:
        engine.generate(_warm_up(requests))
        costs = [
            result.statistics for run in runs for result in engine.generate(run, progress=True)
        ]
        known = [
            (cost.predicted_prefill_s, cost.predicted_decode_s)
            for cost in costs
            if cost.predicted_prefill_s is not None and cost.predicted_decode_s is not None
        ]
        return GpuOutcome(
            prefill_s=sum(cost.prefill_s for cost in costs),
            decode_s=sum(cost.decode_s for cost in costs),
            generated_tokens=sum(cost.num_generated_tokens for cost in costs),
            **peak_memory(device_of(asked["device"])),
            decode_to_device_bytes=sum(cost.decode_to_device_bytes for cost in costs),
            link_wait_s=sum(cost.link_wait_s for cost in costs),
            predicted_s=sum(map(sum, known)) if len(known) == len(costs) else None,
            policy=engine.policy.brief,
        )


def _warm_up(requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """Return a few of the requests, short: kernels are compiled and libraries loaded with them."""
    from flexgen_helm.specs.request import SamplingParams

    few = SamplingParams(max_tokens=WARM_TOKENS)
    return [replace(request, sampling=few) for request in requests[:WARM_REQUESTS]]


def _accelerate(trial: GpuTrial, asked: Mapping[str, Any]) -> GpuOutcome:
    """Weights that do not fit the card in the host's memory; a few tokens, the rest alike."""
    import torch
    from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    from flexgen_helm.model.dtypes import device_of
    from flexgen_helm.runtime.device_cap import cap_device_memory

    device = device_of(asked["device"])
    cap_device_memory(device, trial.cap_bytes)
    [requests] = trial.requests
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(asked["checkpoint"]), dtype=torch.float16
        )
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(0.01)
    if device.type == "cuda":
        # What prompts take while they pass, beside weights.
        rest = trial.cap_bytes // 4
        placed = infer_auto_device_map(
            model,
            max_memory={0: trial.cap_bytes - rest, "cpu": 1 << 60},
            no_split_module_classes=["OPTDecoderLayer"],
        )
        model = dispatch_model(model, placed)
    input_ids = torch.tensor([*prompts(requests)], device=device)
    tokens = min(PILOT_TOKENS, requests.new_tokens)
    times = token_times(model, input_ids, tokens)
    step_s = (times[-1] - times[1]) / max(1, tokens - 1)
    return GpuOutcome(
        prefill_s=times[1] - times[0],
        decode_s=step_s * (requests.new_tokens - 1),
        generated_tokens=requests.count * requests.new_tokens,
        **peak_memory(device),
    )


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Return what an outcome says of memory, of the device and of the host."""
    import torch

    from flexgen_helm.runtime.statistics import peak_memory_bytes

    host_bytes = peak_memory_bytes(torch.device("cpu"))
    if device.type != "cuda":
        return {"host_bytes": host_bytes, "allocated_bytes": 0, "reserved_bytes": 0}
    return {
        "host_bytes": host_bytes,
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
        "allocation_retries": torch.cuda.memory_stats(device)["num_alloc_retries"],
    }


if __name__ == "__main__":
    main(sys.argv[1])
