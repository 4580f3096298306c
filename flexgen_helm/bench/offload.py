"""`bench offload`: a model whose weights are on disk, by ours and by other software.

1. *machine*: the rates of matrix products and of reading the store, before the rest and around the
   stages that are compared with them.
2. *prefill-heavy*: ours, with all layers on disk, beside transformers with all of them in memory
   and accelerate with all of them on disk, and the page cache to help it.
3. *decode-heavy*: ours and accelerate, each in a process whose memory, page cache included, is
   limited; ours has the KV cache on disk, too.
4. *overlap*: ours with and without reading ahead, in passes that compute as long as they read.
5. *disk-bound*: a block so small that its passes do little but read, between readings of the same
   store by nothing but the disk reader.
6. *micro-batches*: ever more of them in a block.
7. *in memory*: all weights in memory, as plain weights and through what streams them.

The batch size of a peer is the best of several, found in short pilots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import mean, median

from flexgen_helm.bench.machine import MachineRow
from flexgen_helm.bench.offload_benchmark import (
    DECODE_HEAVY,
    DISK_BOUND,
    IN_MEMORY,
    MICRO_BATCHES,
    OVERLAP,
    OVERLAPPED,
    PILOT_TOKENS,
    PLAIN,
    PREFILL_HEAVY,
    SERIAL,
    THROUGH_STORE,
    OffloadBenchmark,
    our_trials,
    peer_trials,
)
from flexgen_helm.bench.report import Cell, Report
from flexgen_helm.bench.trial import OURS, PEERS, Bench, Trial, TrialRow, ask, run_trial

PILOT = "pilot"

MEASURED_AROUND = (PREFILL_HEAVY, DISK_BOUND)
"""Stages that are compared with the machine's rates, which drift: measured before and after."""

Announce = Callable[[str], None]


class OffloadSession:
    """Makes one trial after the other and keeps the rows."""

    def __init__(self, bench: Bench, announce: Announce) -> None:
        self.bench = bench
        self.rows: list[TrialRow] = []
        self.machine_rows: list[MachineRow] = []
        self._announce = announce

    def run(self, trial: Trial) -> TrialRow:
        """Make a trial.

        Raises:
            CommandError: it failed, other than for want of memory.
        """
        about = f"{trial.stage}: {trial.system} {trial.setting}".rstrip()
        self._announce(f"{about}, {trial.batch} requests of {trial.workload} tokens ...")
        row = run_trial(trial, self.bench, number=len(self.rows) + 1)
        self.rows.append(row)
        took = "killed for want of memory"
        if row.tokens_per_s is not None:
            took = f"{row.tokens_per_s:.2f} token/s in {row.total_s:.1f} s"
        self._announce(f"{about}: {took}")
        return row

    def measure_machine(self, stage: str) -> MachineRow:
        """Measure rates of the machine, for a stage.

        Raises:
            CommandError: this failed.
        """
        self._announce("machine: matrix products and disk; the weight store is made if need be")
        request = {
            "checkpoint": str(self.bench.checkpoint),
            "directory": str(self.bench.directory),
        }
        answer = ask("flexgen_helm.bench.machine", request, self.bench, name="machine")
        assert answer is not None, "nothing limits its memory"
        row = MachineRow(**{**answer, "stage": stage})
        self.machine_rows.append(row)
        return row


def run_offload_benchmark(
    benchmark: OffloadBenchmark, session: OffloadSession, conditions: Mapping[str, Cell]
) -> Report:
    """Carry out a benchmark, and report it with these and its own conditions.

    Raises:
        CommandError: a process failed, other than for want of memory.
    """
    machine = session.measure_machine("before")
    peers = {
        stage: [_best_batch(trial, benchmark, session) for trial in peer_trials(benchmark, stage)]
        for stage in benchmark.stages
    }
    for _ in range(benchmark.rounds):
        for stage in benchmark.stages:
            if stage in MEASURED_AROUND:
                session.measure_machine(stage)
            for trial in [*our_trials(benchmark, stage, machine), *peers[stage]]:
                if trial is None:
                    continue
                session.run(trial)
                if stage in MEASURED_AROUND and trial.system == OURS:
                    session.measure_machine(stage)
    return Report(
        ratios=ratios(session.rows, session.machine_rows),
        conditions={**conditions, **benchmark.conditions},
        rows=[*map(asdict, session.machine_rows), *map(asdict, session.rows)],
    )


def ratios(rows: Sequence[TrialRow], machines: Sequence[MachineRow]) -> dict[str, float]:
    """Return what the benchmark is about, as far as it was measured.

    Throughputs over those of others, and rates reached over those the machine has, which are the
    means of what was measured around them.
    """
    found: dict[str, float] = {}
    timed = [row for row in rows if row.stage != PILOT]
    for stage in (PREFILL_HEAVY, DECODE_HEAVY):
        for peer in PEERS:
            found |= _ratio(f"{stage}_over_{peer}", timed, stage, (OURS, ""), (peer, ""))
    found |= _ratio("overlap_over_serial", timed, OVERLAP, (OURS, OVERLAPPED), (OURS, SERIAL))
    found |= _ratio("store_over_plain", timed, IN_MEMORY, (OURS, THROUGH_STORE), (OURS, PLAIN))
    blocks = [row for row in timed if row.stage == MICRO_BATCHES]
    if blocks:
        ends = blocks[0].setting, max(blocks, key=lambda row: row.batch).setting
        first, last = ((OURS, setting) for setting in ends)
        found |= _ratio("most_over_one_micro_batch", timed, MICRO_BATCHES, last, first)
        found["largest_memory_over_planned"] = max(
            round(row.memory_bytes / row.planned_bytes, 3)
            for row in blocks
            if row.memory_bytes is not None and row.planned_bytes
        )
    return found | _machine_ratios(timed, machines)


def _machine_ratios(timed: Sequence[TrialRow], machines: Sequence[MachineRow]) -> dict[str, float]:
    """Rates reached, of products in prefill and of the disk, over those measured in between."""
    machine = machines[0]
    products = [
        2 * machine.linear_parameters * row.batch * row.prompt_len / row.prefill_s
        for row in timed
        if row.stage == PREFILL_HEAVY and row.system == OURS and row.prefill_s
    ]
    reading = [
        machine.streamed_bytes * (row.new_tokens - 1) / row.decode_s
        for row in timed
        if row.stage == DISK_BOUND and row.decode_s
    ]
    found = {}
    if products:
        peak = mean(m.gemm_flop_per_s for m in machines if m.stage == PREFILL_HEAVY)
        found["prefill_gemm_over_peak"] = round(mean(products) / peak, 3)
    if reading:
        peak = mean(m.disk_bytes_per_s for m in machines if m.stage == DISK_BOUND)
        found["decode_disk_over_sequential"] = round(mean(reading) / peak, 3)
    return found


def _ratio(
    name: str,
    rows: Sequence[TrialRow],
    stage: str,
    ours: tuple[str, str],
    others: tuple[str, str],
) -> dict[str, float]:
    """How many times the throughput of one is that of another, by medians; nothing if unknown."""
    medians = []
    for who in (ours, others):
        rates = [
            row.tokens_per_s
            for row in rows
            if row.stage == stage and (row.system, row.setting) == who and row.tokens_per_s
        ]
        if not rates:
            return {}
        medians.append(median(rates))
    return {name: round(medians[0] / medians[1], 3)}


def _best_batch(trial: Trial, benchmark: OffloadBenchmark, session: OffloadSession) -> Trial | None:
    """Return the trial with a peer's fastest batch size; `None` if all were killed."""
    if len(benchmark.peer_batches) == 1:
        return trial
    tokens = min(PILOT_TOKENS, trial.workload.new_tokens)
    rates: dict[int, float] = {}
    for batch in sorted(benchmark.peer_batches):
        row = session.run(
            replace(
                trial,
                stage=PILOT,
                setting=trial.stage,
                batch=batch,
                workload=trial.workload._replace(new_tokens=tokens),
            )
        )
        if row.prefill_s is None or row.decode_s is None:
            break  # more would not fit, either
        step_s = row.decode_s / max(1, tokens - 1)
        rates[batch] = batch / (row.prefill_s + (trial.workload.new_tokens - 1) * step_s)
    if not rates:
        return None
    return replace(trial, batch=max(rates, key=lambda batch: rates[batch]))
