"""What a benchmark of offloading measures, by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flexgen_helm.bench.machine import MachineRow
from flexgen_helm.bench.report import Cell
from flexgen_helm.bench.trial import ACCELERATE, OURS, PEERS, Trial, UniformWorkload

PREFILL_HEAVY, DECODE_HEAVY = "prefill-heavy", "decode-heavy"
OVERLAP, DISK_BOUND = "overlap", "disk-bound"
MICRO_BATCHES, IN_MEMORY = "micro-batches", "in memory"
STAGES = (PREFILL_HEAVY, DECODE_HEAVY, OVERLAP, DISK_BOUND, MICRO_BATCHES, IN_MEMORY)

PILOT_TOKENS = 4
"""New tokens of a pilot: a first one, and enough others to tell how long one takes."""

SERIAL, OVERLAPPED = "serial", "overlapped"
PLAIN, THROUGH_STORE = "plain", "through the store"

ON_DISK: Mapping[str, Any] = {"weights": {"disk": 1.0}}

ALMOST_NONE = 1e-6
"""A fraction on disk that is less than any matrix: the store is used, and all of it is loaded."""

OVERLAP_PROMPT = 64
"""Prompt tokens of the requests of which passes of any size can be made."""

OVERLAP_PASSES = 6

DISK_BOUND_PASSES = 12


@dataclass(frozen=True, kw_only=True)
class OffloadBenchmark:
    """What is run."""

    stages: Sequence[str]
    peers: Sequence[str]
    peer_batches: Sequence[int]
    """Batch sizes that compete for being a peer's."""

    prefill_heavy: UniformWorkload
    decode_heavy: UniformWorkload

    batch: int
    """Requests of ours in the prefill-heavy stage."""

    decode_batch: int
    """Requests of ours in the decode-heavy stage."""

    memory_limit_bytes: int
    """Of both in the decode-heavy stage."""

    micro_batches: Sequence[int]
    """Numbers of them in a block."""

    micro_batch_size: int
    rounds: int

    @property
    def conditions(self) -> dict[str, Cell]:
        """What to report with the figures."""
        return {
            "peers": "; ".join(f"{peer}: {PEERS[peer]}" for peer in self.peers),
            "peer_batches": f"best of {', '.join(map(str, self.peer_batches))}, chosen by pilots",
            "rounds": self.rounds,
            "throughput": "generated tokens over prefill and decode time, without loading",
            "requests": "random tokens, nothing shared, greedy, all of the same length",
            "dtype": "the fastest of this machine, no compression",
            "memory": "peak of the process above what it had before loading",
        }


def our_trials(benchmark: OffloadBenchmark, stage: str, machine: MachineRow) -> Iterator[Trial]:
    """Yield those of ours in a stage."""
    trial = Trial(stage=stage, system=OURS, workload=benchmark.prefill_heavy, batch=benchmark.batch)
    if stage == PREFILL_HEAVY:
        yield replace(trial, policy=ON_DISK)
    elif stage == DECODE_HEAVY:
        yield replace(
            trial,
            workload=benchmark.decode_heavy,
            batch=benchmark.decode_batch,
            policy={**ON_DISK, "cache": {"disk": 1.0}, "micro_batch_tokens": 256},
            memory_limit_bytes=benchmark.memory_limit_bytes,
        )
    elif stage == OVERLAP:
        yield from _overlap_trials(trial, machine)
    elif stage == DISK_BOUND:
        workload = UniformWorkload(benchmark.decode_heavy.prompt_len, DISK_BOUND_PASSES + 1)
        small = {**ON_DISK, "micro_batch_tokens": benchmark.micro_batch_size * workload.prompt_len}
        for _ in range(2):
            yield replace(trial, workload=workload, batch=benchmark.micro_batch_size, policy=small)
    elif stage == MICRO_BATCHES:
        workload = UniformWorkload(benchmark.decode_heavy.prompt_len, 2 * PILOT_TOKENS)
        for count in benchmark.micro_batches:
            shape = {"micro_batch_size": benchmark.micro_batch_size, "num_micro_batches": count}
            tokens = benchmark.micro_batch_size * workload.prompt_len
            yield replace(
                trial,
                setting=f"{count} x {benchmark.micro_batch_size}",
                workload=workload,
                batch=count * benchmark.micro_batch_size,
                policy={**ON_DISK, **shape, "micro_batch_tokens": tokens},
            )
    else:
        workload = UniformWorkload(benchmark.decode_heavy.prompt_len, 2 * PILOT_TOKENS)
        hardly = {"weights": {"device": 1 - ALMOST_NONE, "disk": ALMOST_NONE}}
        for setting, policy in ((PLAIN, {}), (THROUGH_STORE, hardly)):
            yield replace(
                trial, setting=setting, workload=workload, batch=benchmark.batch, policy=policy
            )


def _overlap_trials(trial: Trial, machine: MachineRow) -> Iterator[Trial]:
    """Passes over prompts alone, of as many tokens as are computed while the weights are read."""
    read_s = machine.streamed_bytes / machine.disk_bytes_per_s
    tokens = read_s * machine.gemm_flop_per_s / (2 * machine.linear_parameters)
    per_pass = max(1, round(tokens / OVERLAP_PROMPT))
    shape = {"num_micro_batches": 1, "micro_batch_tokens": per_pass * OVERLAP_PROMPT}
    for setting in (SERIAL, OVERLAPPED):
        yield replace(
            trial,
            setting=setting,
            workload=UniformWorkload(OVERLAP_PROMPT, 1),
            batch=per_pass * OVERLAP_PASSES,
            policy={**ON_DISK, **shape, "overlap": setting == OVERLAPPED},
        )


def peer_trials(benchmark: OffloadBenchmark, stage: str) -> Iterator[Trial]:
    """Yield one for each peer of a stage, of the largest batch."""
    most = max(benchmark.peer_batches)
    if stage == PREFILL_HEAVY:
        for peer in benchmark.peers:
            yield Trial(stage=stage, system=peer, workload=benchmark.prefill_heavy, batch=most)
    elif stage == DECODE_HEAVY and ACCELERATE in benchmark.peers:
        yield Trial(
            stage=stage,
            system=ACCELERATE,
            workload=benchmark.decode_heavy,
            batch=most,
            memory_limit_bytes=benchmark.memory_limit_bytes,
        )
