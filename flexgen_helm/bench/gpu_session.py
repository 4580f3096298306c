"""Trials on a GPU, each in a process of its own, one after another in the time there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic

from flexgen_helm.bench.gpu_trial import UPSTREAM, GpuOutcome, GpuRow, GpuTrial
from flexgen_helm.bench.rates import measure_rates
from flexgen_helm.bench.trial import Bench, ask
from flexgen_helm.errors import CommandError, CommandTimeoutError
from flexgen_helm.specs.hardware import Hardware

ENOUGH_S = 10.0
"""With less time left, nothing is begun."""

ROWS_FILE = "rows.jsonl"

Announce = Callable[[str], None]


class GpuSession:
    """Runs one process after another, in the time there is.

    What each trial came to is in `ROWS_FILE` at once: who runs this may have less time than it.

    Args:
        tokenizer: of the dummy checkpoints.
        directory: for checkpoints, stores, logs and what trials came to.
        device: ``cuda``, or ``cpu`` to try the benchmark out.
        limit_s: time in all.
        announce: told what goes on.
    """

    def __init__(
        self, tokenizer: Path, directory: Path, *, device: str, limit_s: float, announce: Announce
    ) -> None:
        self._tokenizer, self._directory, self._device = tokenizer, directory, device
        self._announce = announce
        self._end_s = monotonic() + limit_s
        self._count = 0

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self._end_s - monotonic()

    def calibrate(self) -> Hardware:
        """Measure the card.

        Raises:
            CommandError: this failed, or took all the time.
        """
        self._announce("machine: rates of card, link and disk ...")
        return measure_rates(self._bench("125m"), device=self._device, limit_s=self.left_s)

    def run(self, trial: GpuTrial, hardware: Hardware) -> GpuRow:
        """Make a trial, if there is time."""
        row = self._run(trial, hardware)
        found = f"{row.outcome.tokens_per_s:.2f} token/s" if row.outcome else row.problem
        self._announce(f"{_about(trial)}: {found}")
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / ROWS_FILE).open("a") as rows:
            rows.write(json.dumps(row.flat()) + "\n")
        return row

    def _run(self, trial: GpuTrial, hardware: Hardware) -> GpuRow:
        row = GpuRow(
            stage=trial.stage,
            system=trial.system,
            setting=trial.setting,
            model=f"opt-{trial.model}",
            requests=sum(requests.count for requests in trial.requests),
            prompt_len=_mean([(r.prompt_len, r.count) for r in trial.requests]),
            new_tokens=_mean([(r.new_tokens, r.count) for r in trial.requests]),
            cap_bytes=trial.cap_bytes,
        )
        if self.left_s < ENOUGH_S:
            return replace(row, problem="no time was left", unfinished=True)
        self._announce(f"{_about(trial)} ... ({self.left_s:.0f} s left)")
        self._count += 1
        bench = self._bench(trial.model)
        request = {
            "trial": asdict(trial),
            "checkpoint": str(bench.checkpoint),
            "directory": str(bench.directory),
            "device": self._device,
            "hardware": hardware.to_json(),
        }
        module = "upstream" if trial.system == UPSTREAM else "gpu_process"
        try:
            answer = ask(
                f"flexgen_helm.bench.{module}",
                request,
                bench,
                name=f"gpu-{self._count:02}",
                limit_s=self.left_s,
            )
        except CommandError as error:
            late = isinstance(error, CommandTimeoutError)
            return replace(row, problem=str(error), unfinished=late)
        if answer is None:
            return replace(row, problem="was killed for want of memory")
        return replace(row, outcome=GpuOutcome(**answer))

    def _bench(self, model: str) -> Bench:
        return Bench.of_size(model, tokenizer=self._tokenizer, directory=self._directory)


def _about(trial: GpuTrial) -> str:
    return f"{trial.stage}: {trial.system} {trial.setting}, opt-{trial.model}"


def _mean(pairs: Sequence[tuple[int, int]]) -> int:
    """Mean of values, weighted."""
    return round(sum(value * weight for value, weight in pairs) / sum(w for _, w in pairs))
