"""Measures what a machine can do, with the very functions the engine computes with.

Everything is measured in several rounds, as a machine may be slow for a while, mostly on shapes of
OPT-1.3B's width. What else a prompt's tokens take in a layer is what is left of the time that a
small model of that width takes.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from tqdm import tqdm

from flexgen_helm.model.dtypes import DTYPES, device_of, resolve_device, resolve_dtype
from flexgen_helm.processor import cpu_model, num_cores
from flexgen_helm.runtime.allocator import reuse_freed_memory
from flexgen_helm.runtime.calibration.computing import Computing
from flexgen_helm.runtime.calibration.disk import disk_rates
from flexgen_helm.runtime.calibration.engines import hidden_rate, overheads
from flexgen_helm.runtime.calibration.shapes import CACHED, FFN, HEADS, SEQUENCES, WIDTH
from flexgen_helm.runtime.calibration.timing import elapsed_s
from flexgen_helm.runtime.statistics import usable_bytes
from flexgen_helm.specs.hardware import Hardware, middle

ROUNDS, NUM_STEPS = 3, 13

LIMIT_S = 110.0
"""Of all rounds; only a slow machine comes to fewer than were asked for."""

NO_TIME = 1e18
"""A rate at which nothing takes any time."""


def calibrate(
    directory: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    rounds: int = ROUNDS,
    progress: bool = False,
) -> Hardware:
    """Measure this machine; takes less than two minutes.

    Args:
        directory: on the disk that weights and cache will be on.
        device: ``cpu``, ``cuda``, or ``auto``.
        dtype: compute dtype, or ``auto``.
        rounds: times everything is measured, if there is time for it.
        progress: whether to show a progress bar.

    Raises:
        InvalidSettingError: there is no such device or dtype.
        StoreError: the disk cannot be used.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    computing = Computing(device_of(device), DTYPES[dtype])
    reuse_freed_memory()  # as the engine does
    with (
        tqdm(total=rounds * NUM_STEPS, disable=not progress, unit="step") as bar,
        torch.inference_mode(),
    ):

        def on_step(name: str) -> None:
            bar.set_description(f"measuring {name}")
            bar.update()

        found: list[Hardware] = []
        longest_s, start_s = 0.0, time.perf_counter()
        while len(found) < rounds and elapsed_s(start_s) + longest_s < LIMIT_S:
            round_s = time.perf_counter()
            found.append(_measure(computing, directory, dtype, on_step))
            longest_s = max(longest_s, elapsed_s(round_s))
        bar.total = len(found) * NUM_STEPS
        return middle(found)


def _measure(
    computing: Computing, directory: Path, dtype: str, on_step: Callable[[str], None]
) -> Hardware:
    """Measure everything once."""
    unified, device = computing.unified, str(computing.device)
    steps: dict[str, Callable[[], object]] = {
        "product_flop_per_s": computing.products,
        "packed_flop_per_s": computing.packed_products,
        "attention_flop_per_s": computing.prefill_attention,
        "device_attention_bytes_per_s": lambda: computing.decode_attention(computing.device),
        "host_attention_bytes_per_s": lambda: computing.decode_attention(torch.device("cpu")),
        "dequantized_weights_per_s": computing.dequantized_weights,
        "dequantized_cache_per_s": computing.dequantized_cache,
        "quantized_cache_per_s": computing.quantized_cache,
        "host_to_device_bytes_per_s": lambda: None if unified else computing.copied(up=True),
        "device_to_host_bytes_per_s": lambda: None if unified else computing.copied(up=False),
    }
    values: dict[str, object] = {}
    for name, measure in steps.items():
        on_step(name)
        values[name] = measure()
    on_step("the disk")
    values |= disk_rates(directory, computing)
    on_step("step_s, disk_step_s and token_s")
    values |= overheads(device, dtype, directory)
    on_step("hidden_bytes_per_s")
    found = _hardware(computing, directory, dtype, {**values, "hidden_bytes_per_s": NO_TIME})
    return replace(found, hidden_bytes_per_s=hidden_rate(found, device, directory))


def _hardware(
    computing: Computing, directory: Path, dtype: str, values: Mapping[str, object]
) -> Hardware:
    return Hardware(
        name="this machine",
        source="measured",
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        conditions={
            "processor": f"{num_cores()} x {cpu_model()}",
            "device": _device_name(computing.device),
            "threads": str(torch.get_num_threads()),
            "torch": torch.__version__,
            "system": platform.platform(),
            "shapes": f"width {WIDTH}, MLP {FFN}, {HEADS} heads, {SEQUENCES} x {CACHED} cached",
        },
        unified=computing.unified,
        dtype=dtype,
        **usable_bytes(computing.device, directory),
        **values,  # type: ignore[arg-type]  # each has the type of its field
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
