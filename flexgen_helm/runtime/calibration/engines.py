"""What engines take beside what rates tell, measured on small models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from flexgen_helm.model.checkpoint import read_spec
from flexgen_helm.model.dtypes import device_of
from flexgen_helm.model.dummy import write_dummy_of
from flexgen_helm.planner.plan import predict
from flexgen_helm.runtime.calibration.shapes import (
    CACHED,
    GPU_ROWS,
    NUM_LAYERS,
    VOCABULARY,
    WIDTH,
    small_config,
)
from flexgen_helm.runtime.calibration.timing import REPETITIONS, left_s, typical_s
from flexgen_helm.runtime.engine import Engine
from flexgen_helm.runtime.lengths import workload_of
from flexgen_helm.specs.catalog import EMBEDDED_CHECKPOINT
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.placement import Placement
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest, SamplingParams

STEP_TOKENS, STEP_SEQUENCES = 32, 32
"""New tokens of each sequence of a small model, and sequences of it at once."""

NUM_PROMPTS = 4
"""Of `CACHED` tokens each, which a processor computes; a GPU has `GPU_ROWS`."""


def overheads(device: str, dtype: str, directory: Path) -> dict[str, float | None]:
    """Of a layer, and of a sequence, of so small a model that hardly anything is computed."""
    sampling = SamplingParams(max_tokens=STEP_TOKENS)
    requests = [
        GenerationRequest(prompt_token_ids=[2, 3, 4 + index], sampling=sampling)
        for index in range(STEP_SEQUENCES)
    ]

    def measure(policy: Policy, *counts: int) -> list[float]:
        with Engine.from_pretrained(
            EMBEDDED_CHECKPOINT, device=device, dtype=dtype, policy=policy, offload_dir=directory
        ) as engine:
            return [_seconds_of_pass(engine, requests[:count]) for count in counts]

    one, many = measure(Policy(cuda_graphs=False), 1, STEP_SEQUENCES)
    [on_disk] = measure(Policy(cache=Placement(disk=1)), STEP_SEQUENCES)
    num_layers = read_spec(EMBEDDED_CHECKPOINT).num_layers
    token_s = max(0.0, many - one) / (STEP_SEQUENCES - 1)
    captured_step_s, link_step_s = None, 0.0
    if device_of(device).type == "cuda":
        [captured] = measure(Policy(), 1)
        captured_step_s = max(0.0, captured - token_s) / num_layers
        [on_host] = measure(Policy(cache=Placement(host=1)), STEP_SEQUENCES)
        link_step_s = max(0.0, on_host - many) / num_layers
    return {
        "step_s": max(0.0, one - token_s) / num_layers,
        "captured_step_s": captured_step_s,
        "disk_step_s": max(0.0, on_disk - many) / num_layers,
        "link_step_s": link_step_s,
        "token_s": token_s,
    }


def _seconds_of_pass(engine: Engine, requests: Sequence[GenerationRequest]) -> float:
    """Of decode."""
    seconds = []
    for _ in range(REPETITIONS):
        costs = [result.statistics for result in engine.generate(requests)]
        passes = max(cost.num_generated_tokens for cost in costs) - 1
        seconds.append(sum(cost.decode_s for cost in costs) / max(1, passes))
    return median(seconds)


def hidden_rate(hardware: Hardware, device: str, directory: Path) -> float:
    """Bytes of hidden states a second, of what a prompt takes beside what is known."""
    sampling = SamplingParams(max_tokens=1)
    num_prompts = NUM_PROMPTS if hardware.unified else GPU_ROWS // CACHED
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, VOCABULARY, (num_prompts, CACHED), generator=generator)
    prompts[:, 0] = torch.arange(4, 4 + num_prompts)  # nothing shared
    requests = [GenerationRequest(prompt_token_ids=p, sampling=sampling) for p in prompts.tolist()]
    with TemporaryDirectory(dir=directory) as name:
        checkpoint = write_dummy_of(
            small_config(), tokenizer=EMBEDDED_CHECKPOINT, directory=Path(name)
        )
        with Engine.from_pretrained(
            checkpoint, device=device, dtype=hardware.dtype, policy=Policy()
        ) as engine:
            measured_s = typical_s(
                lambda: sum(result.statistics.prefill_s for result in engine.generate(requests))
            )
        spec = read_spec(checkpoint)
    workload = workload_of(requests, spec.max_positions)
    predicted = predict(spec, Compression(), hardware, workload, Policy(), cached_tokens=1)
    num_bytes = prompts.numel() * NUM_LAYERS * WIDTH * hardware.dtype_bytes
    return num_bytes / left_s(measured_s, predicted.predicted_s)
