"""Measures what a machine can do, with the very functions the engine computes with.

Everything is measured in several rounds, as a machine may be slow for a while, mostly on shapes of
OPT-1.3B's width. What else a prompt's tokens take in a layer is what is left of the time that a
small model of that width takes.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flexgen_helm.errors import StoreError
from flexgen_helm.model.attention import attend, attend_one
from flexgen_helm.model.cache_format import CacheFormat
from flexgen_helm.model.checkpoint import read_spec
from flexgen_helm.model.dtypes import DTYPES, device_of, resolve_device, resolve_dtype
from flexgen_helm.model.dummy import write_dummy_of
from flexgen_helm.model.linear import laid_out, linear
from flexgen_helm.offload.disk import (
    REQUEST_BYTES,
    REQUESTS_IN_FLIGHT,
    DirectFile,
    aligned_buffer,
)
from flexgen_helm.offload.weights import Decompressor
from flexgen_helm.planner.plan import predict
from flexgen_helm.processor import cpu_model, num_cores
from flexgen_helm.quant import kernels
from flexgen_helm.quant.quantize import quantize
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.runtime.allocator import reuse_freed_memory
from flexgen_helm.runtime.engine import Engine
from flexgen_helm.runtime.lengths import workload_of
from flexgen_helm.runtime.statistics import usable_bytes
from flexgen_helm.specs.catalog import EMBEDDED_CHECKPOINT
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Curve, Hardware, Surface, middle
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.opt_sizes import config_of
from flexgen_helm.specs.placement import Placement
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest, SamplingParams

WIDTH, FFN, HEADS = 2048, 8192, 32
HEAD = WIDTH // HEADS
ROWS = (1, 4, 16, 64, 256, 2048)
MATRICES = ((768, 3072), (2048, 8192), (4096, 16384))
"""Inputs and outputs, of an MLP's width in OPT-125M, 1.3B and 6.7B."""

IN_TURN_BYTES = 256 << 20
"""Matrices that are used in turn take so much, so that none is in a cache when it comes again."""

SEQUENCES, CACHED = 64, 512
BITS, GROUP_SIZE = 4, 64
ROUNDS, NUM_STEPS = 3, 12

REPETITIONS, ENOUGH_S = 3, 0.2
"""How often something is timed at least, and for how long."""

LONG_S = 2.0
"""What takes so long the first time is not timed again: warming up is a small part of it."""

LIMIT_S = 110.0
"""Of all rounds; only a slow machine comes to fewer than were asked for."""

FILE_BYTES = 64 * REQUEST_BYTES
"""512 MB are written to and read from disk."""

TURNS, TOGETHER_S = 2, 2.0
"""How often, and how long, computing and reading go on at the same time."""

STEP_TOKENS, STEP_SEQUENCES = 32, 32
"""New tokens of each sequence of a small model, and sequences of it at once."""

NUM_LAYERS, NUM_PROMPTS = 4, 4
"""Of the small model, and of what it reads: 512 tokens each."""

GPU_ROWS = 8192
"""Rows with which a GPU is busy for longer than it takes to tell it what to do."""

VOCABULARY = 1024

NO_TIME = 1e18
"""A rate at which nothing takes any time."""

LEAST_LEFT = 0.01
"""Part of a time that what is left of it after subtraction takes at least."""


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
    bench = _Bench(device_of(device), DTYPES[dtype])
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
        while len(found) < rounds and _elapsed_s(start_s) + longest_s < LIMIT_S:
            round_s = time.perf_counter()
            found.append(_measure(bench, directory, dtype, on_step))
            longest_s = max(longest_s, _elapsed_s(round_s))
        bar.total = len(found) * NUM_STEPS
        return middle(found)


def _elapsed_s(start_s: float) -> float:
    return time.perf_counter() - start_s


def _measure(
    bench: _Bench, directory: Path, dtype: str, on_step: Callable[[str], None]
) -> Hardware:
    """Measure everything once."""
    unified, device = bench.unified, str(bench.device)
    steps: dict[str, Callable[[], object]] = {
        "product_flop_per_s": bench.products,
        "attention_flop_per_s": bench.prefill_attention,
        "device_attention_bytes_per_s": lambda: bench.decode_attention(bench.device),
        "host_attention_bytes_per_s": lambda: bench.decode_attention(torch.device("cpu")),
        "dequantized_weights_per_s": bench.dequantized_weights,
        "dequantized_cache_per_s": bench.dequantized_cache,
        "quantized_cache_per_s": bench.quantized_cache,
        "host_to_device_bytes_per_s": lambda: None if unified else bench.copied(up=True),
        "device_to_host_bytes_per_s": lambda: None if unified else bench.copied(up=False),
    }
    values: dict[str, object] = {}
    for name, measure in steps.items():
        on_step(name)
        values[name] = measure()
    on_step("the disk")
    values |= _disk_rates(directory, bench)
    on_step("step_s, disk_step_s and token_s")
    values |= _overheads(device, dtype, directory)
    on_step("hidden_bytes_per_s")
    found = _hardware(bench, directory, dtype, {**values, "hidden_bytes_per_s": NO_TIME})
    return replace(found, hidden_bytes_per_s=_hidden_rate(found, device, directory))


def _hardware(bench: _Bench, directory: Path, dtype: str, values: Mapping[str, object]) -> Hardware:
    return Hardware(
        name="this machine",
        source="measured",
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        conditions={
            "processor": f"{num_cores()} x {cpu_model()}",
            "device": _device_name(bench.device),
            "threads": str(torch.get_num_threads()),
            "torch": torch.__version__,
            "system": platform.platform(),
            "shapes": f"width {WIDTH}, MLP {FFN}, {HEADS} heads, {SEQUENCES} x {CACHED} cached",
        },
        unified=bench.unified,
        dtype=dtype,
        **usable_bytes(bench.device, directory),
        **values,  # type: ignore[arg-type]  # each has the type of its field
    )


class _Bench:
    """Rates of computing and copying."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    @property
    def unified(self) -> bool:
        """Whether device and host are one memory."""
        return self.device.type == "cpu"

    def products(self) -> Surface:
        """By numbers of the matrix and by rows, in FLOP/s."""
        calls = []
        for inputs, outputs in MATRICES:
            matrices = self.in_turn(inputs, outputs)
            calls += [partial(_product, self._random(rows, inputs), matrices) for rows in ROWS]
        seconds = iter(self.times(calls))
        curves = []
        for inputs, outputs in MATRICES:
            flop = [(float(rows), 2 * rows * inputs * outputs) for rows in ROWS]
            points = tuple((rows, count / next(seconds)) for rows, count in flop)
            curves.append((float(inputs * outputs), Curve(points)))
        return Surface(tuple(curves))

    def in_turn(self, inputs: int, outputs: int) -> Iterator[Tensor]:
        """Matrices without end, none of which is in a cache when it comes again."""
        count = -(-IN_TURN_BYTES // (inputs * outputs * self.dtype.itemsize))
        return cycle([laid_out(self._random(outputs, inputs)) for _ in range(count)])

    def prefill_attention(self) -> float:
        """Causal, in FLOP/s of what the mask leaves."""
        num_chains = 4
        q, k, v = (self._random(num_chains * HEADS, CACHED, HEAD) for _ in range(3))
        seconds = self.time(lambda: attend(q, k, v, causal=True))
        return 4 * num_chains * CACHED * (CACHED + 1) / 2 * WIDTH / seconds

    def decode_attention(self, device: torch.device) -> float:
        """In bytes of keys and values a second."""
        shape = SEQUENCES, HEADS, CACHED, HEAD
        keys, values = (torch.randn(shape, device=device).to(self.dtype) for _ in range(2))
        q, k, v = (
            torch.randn(SEQUENCES, HEADS, HEAD, device=device).to(self.dtype) for _ in range(3)
        )
        mask = torch.zeros(SEQUENCES, CACHED, dtype=torch.bool, device=device)
        seconds = self.time(lambda: attend_one(q, keys, values, mask, k, v))
        return 2 * keys.numel() * keys.element_size() / seconds

    def dequantized_weights(self) -> Curve:
        """By numbers of a layer's largest matrix, in numbers a second.

        What a layer takes longer whose matrices are dequantized before they are multiplied with:
        they are not in the order in which they are read fastest then, nor in a cache.
        """
        points = []
        for inputs, outputs in MATRICES:
            shapes = (
                (3 * inputs, inputs), (inputs, inputs), (outputs, inputs), (inputs, outputs)
            )  # fmt: skip
            numbers = sum(rows * row_len for rows, row_len in shapes)
            hidden = [self._random(SEQUENCES, row_len) for _, row_len in shapes]
            num_layers = max(2, -(-IN_TURN_BYTES // (4 * numbers * BITS // 8)))
            plain = cycle([laid_out(self._random(*shape)) for shape in shapes])
            layer = [
                quantize(self._random(*shape), bits=BITS, group_size=GROUP_SIZE) for shape in shapes
            ]
            # Layers in turn, dequantized into the same memory as the engine does it.
            decompressor = Decompressor(self.dtype)
            matrices = cycle(
                [
                    (str(index), matrix.map(torch.clone), rows)
                    for _ in range(num_layers)
                    for index, (matrix, rows) in enumerate(zip(layer, hidden, strict=True))
                ]
            )
            seconds = self.time_longer(
                lambda: [
                    _multiply_decompressed(decompressor, *next(matrices))  # noqa: B023
                    for _ in shapes  # noqa: B023
                ],
                lambda: [linear(rows, next(plain)) for rows in hidden],  # noqa: B023
            )
            points.append((float(inputs * outputs), numbers / seconds))
        return Curve(tuple(points))

    def dequantized_cache(self) -> float:
        """In numbers a second: what attention takes longer over compressed keys and values."""
        compression = Compression(cache_bits=BITS, group_size=GROUP_SIZE)
        cache_format = CacheFormat(
            spec=ModelSpec.from_config(_small_config()),
            compression=compression,
            dtype=self.dtype,
            device=self.device,
        )
        keys, values = (
            quantize(self._random(SEQUENCES, CACHED, WIDTH), bits=BITS, group_size=GROUP_SIZE)
            for _ in range(2)
        )
        numbers = 2 * SEQUENCES * CACHED * WIDTH
        if cache_format.has_kernel:
            queries = self._random(SEQUENCES, HEADS, HEAD)
            ends = torch.full((SEQUENCES,), CACHED, device=self.device)
            compressed_s = self.time(lambda: kernels.attend(queries, keys, values, ends))
            plain_s = numbers * self.dtype.itemsize / self.decode_attention(self.device)
            seconds = max(compressed_s - plain_s, LEAST_LEFT * compressed_s)
        else:
            seconds = self.time(lambda: cache_format.both_by_head(keys, values))
        return numbers / seconds

    def quantized_cache(self) -> float:
        """In numbers a second, of as many rows as a micro-batch in prefill has."""
        rows = self._random(CACHED if self.unified else GPU_ROWS, WIDTH)
        return rows.numel() / self.time(lambda: quantize(rows, bits=BITS, group_size=GROUP_SIZE))

    def copied(self, *, up: bool) -> float:
        """Between pinned memory and the device, in bytes a second."""
        on_host = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
        on_device = torch.empty_like(on_host, device=self.device)
        to, source = (on_device, on_host) if up else (on_host, on_device)
        return len(on_host) / self.time(lambda: to.copy_(source, non_blocking=True))

    def time(self, function: Callable[[], object]) -> float:
        """Return seconds of a call."""
        return _typical(partial(self._time_once, function))

    def times(self, functions: Sequence[Callable[[], object]]) -> list[float]:
        """Return seconds of calls that take turns: the machine may be slow for a while."""
        return _typical_of([partial(self._time_once, function) for function in functions])

    def time_longer(self, function: Callable[[], object], other: Callable[[], object]) -> float:
        """Return the seconds that a call takes longer than another.

        Both take turns, as their difference may be less than that of two times of the machine.
        """
        both = function, other
        pairs = [[self._time_once(each) for each in both]]  # to warm up
        start_s = time.perf_counter()
        while len(pairs) <= REPETITIONS or _elapsed_s(start_s) < ENOUGH_S:
            pairs.append([self._time_once(each) for each in both])
        longer_s = median(seconds - other_s for seconds, other_s in pairs[1:])
        return max(longer_s, LEAST_LEFT * median(seconds for seconds, _ in pairs[1:]))

    def _time_once(self, function: Callable[[], object]) -> float:
        self.synchronize()
        start_s = time.perf_counter()
        function()
        self.synchronize()
        return _elapsed_s(start_s)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)


def _typical(measure: Callable[[], float]) -> float:
    """Return the median of seconds that are measured several times, after once to warm up."""
    [seconds] = _typical_of([measure])
    return seconds


def _typical_of(measures: Sequence[Callable[[], float]]) -> list[float]:
    """Do as `_typical` does, for several in turn."""
    first = [measure() for measure in measures]
    found: list[list[float]] = [[] for _ in measures]
    for turn in range(1, 1 + REPETITIONS):
        for measure, seconds, first_s in zip(measures, found, first, strict=True):
            while first_s < LONG_S and (
                len(seconds) < turn or sum(seconds) < ENOUGH_S * turn / REPETITIONS
            ):
                seconds.append(measure())
    return [median(again or [once]) for again, once in zip(found, first, strict=True)]


def _product(hidden: Tensor, matrices: Iterator[Tensor]) -> Tensor:
    return linear(hidden, next(matrices))


def _multiply_decompressed(
    decompressor: Decompressor, name: str, matrix: QuantizedTensor, rows: Tensor
) -> Tensor:
    return linear(rows, decompressor.decompress({name: matrix})[name])


def _overheads(device: str, dtype: str, directory: Path) -> dict[str, float | None]:
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


def _hidden_rate(hardware: Hardware, device: str, directory: Path) -> float:
    """Bytes of hidden states a second, of what a prompt takes beside what is known."""
    sampling = SamplingParams(max_tokens=1)
    num_prompts = NUM_PROMPTS if hardware.unified else GPU_ROWS // CACHED
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, VOCABULARY, (num_prompts, CACHED), generator=generator)
    prompts[:, 0] = torch.arange(4, 4 + num_prompts)  # nothing shared
    requests = [GenerationRequest(prompt_token_ids=p, sampling=sampling) for p in prompts.tolist()]
    with TemporaryDirectory(dir=directory) as name:
        checkpoint = write_dummy_of(
            _small_config(), tokenizer=EMBEDDED_CHECKPOINT, directory=Path(name)
        )
        with Engine.from_pretrained(
            checkpoint, device=device, dtype=hardware.dtype, policy=Policy()
        ) as engine:
            measured_s = _typical(
                lambda: sum(result.statistics.prefill_s for result in engine.generate(requests))
            )
        spec = read_spec(checkpoint)
    workload = workload_of(requests, spec.max_positions)
    predicted = predict(spec, Compression(), hardware, workload, Policy(), cached_tokens=1)
    num_bytes = prompts.numel() * NUM_LAYERS * WIDTH * hardware.dtype_bytes
    return num_bytes / max(measured_s - predicted.predicted_s, LEAST_LEFT * measured_s)


def _small_config() -> dict[str, Any]:
    """Return the shape of a model of few layers of the width that is measured."""
    return {
        **config_of("1.3b"),
        "num_hidden_layers": NUM_LAYERS,
        "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "ffn_dim": FFN,
        "num_attention_heads": HEADS,
        "vocab_size": VOCABULARY,
    }


def _disk_rates(directory: Path, bench: _Bench) -> dict[str, float]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = DirectFile.temporary(directory)
        file.allocate(0, FILE_BYTES)
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as threads:
            disk = _Disk(file, threads)
            written = [disk.write() for _ in range(2)][1]
            read = median(disk.read() for _ in range(3))
            contention = _contention(disk, bench)
        file.close()
    except OSError as error:
        raise StoreError(
            f"the disk of {directory} cannot be measured ({error}): free 1 GB there, or choose"
            " another offload directory"
        ) from error
    return {
        "disk_write_bytes_per_s": written,
        "disk_read_bytes_per_s": read,
        "contention": contention,
    }


class _Disk:
    """A file that is written and read in several large requests at once."""

    def __init__(self, file: DirectFile, threads: ThreadPoolExecutor) -> None:
        self._file, self._threads = file, threads
        self._buffers = [aligned_buffer(REQUEST_BYTES) for _ in range(2 * REQUESTS_IN_FLIGHT)]
        for buffer in self._buffers:
            buffer.random_()
        self._requests_read: list[int] = []
        """Bytes of each; threads can append to a list."""

    @property
    def bytes_read(self) -> int:
        return sum(self._requests_read)

    def write(self) -> float:
        """Return bytes a second."""
        return FILE_BYTES / self._all(self._file.store)

    def read(self) -> float:
        """Return bytes a second."""
        return FILE_BYTES / self._all(self._read)

    def read_until(self, stop: Callable[[], bool]) -> None:
        """Read again and again."""
        while not stop():
            self.read()

    def _read(self, buffer: Tensor, offset: int) -> None:
        self._file.fill(buffer, offset)
        self._requests_read.append(buffer.nbytes)

    def _all(self, transfer: Callable[[Tensor, int], None]) -> float:
        start_s = time.perf_counter()
        # A buffer is used by two requests: what is read is not looked at.
        wait(
            self._threads.submit(transfer, buffer, offset)
            for offset, buffer in zip(
                range(0, FILE_BYTES, REQUEST_BYTES), cycle(self._buffers), strict=False
            )
        )
        return time.perf_counter() - start_s


def _contention(disk: _Disk, bench: _Bench) -> float:
    """Part of the shorter of computing and reading that takes time of its own beside the longer.

    Products are those of decode, which wants the disk most: like it, they wait for memory.
    """
    multiply = partial(_product, bench._random(SEQUENCES, WIDTH), bench.in_turn(WIDTH, FFN))
    return median(_contention_once(disk, bench, multiply) for _ in range(TURNS))


def _contention_once(disk: _Disk, bench: _Bench, multiply: Callable[[], Tensor]) -> float:
    alone_s, read_bytes_per_s = bench.time(multiply), disk.read()
    with _reading(disk):
        start_s, start_bytes, products = time.perf_counter(), disk.bytes_read, 0
        while _elapsed_s(start_s) < TOGETHER_S:
            multiply()
            bench.synchronize()
            products += 1
        seconds, num_bytes = _elapsed_s(start_s), disk.bytes_read - start_bytes
    parts = products * alone_s / seconds, num_bytes / read_bytes_per_s / seconds
    return min(1.0, max(0.0, (1 - max(parts)) / min(parts)))


@contextmanager
def _reading(disk: _Disk) -> Iterator[None]:
    """Read in the background."""
    stopped = False
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(disk.read_until, lambda: stopped)
        try:
            yield
        finally:
            stopped = True
        reading.result()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
