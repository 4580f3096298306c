"""One measured generation in a process of its own, by ours or by other software."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from flexgen_helm.bench.memory_limit import MemoryLimit, forget_pages
from flexgen_helm.errors import CommandError, CommandTimeoutError

OURS = "flexgen_helm"
TRANSFORMERS = "transformers"
ACCELERATE = "accelerate"

PEERS = {
    TRANSFORMERS: "all weights in memory",
    ACCELERATE: "device_map with all layers on disk",
}


class UniformWorkload(NamedTuple):
    """Requests of the same length, with nothing in common."""

    prompt_len: int
    new_tokens: int

    def __str__(self) -> str:
        return f"{self.prompt_len}/{self.new_tokens}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is to be measured."""

    stage: str
    """What it is for."""

    system: str
    """`OURS` or one of `PEERS`."""

    setting: str = ""
    """What it is called among those of its stage."""

    workload: UniformWorkload
    batch: int
    """Requests given at once."""

    policy: Mapping[str, Any] = field(default_factory=dict)
    """Of ours."""

    compression: str = "none"
    """Of ours."""

    memory_limit_bytes: int | None = None
    """What the process may have in all, page cache included; `None` for all there is."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the process of a trial reports."""

    prefill_s: float
    """Until all requests have their first token; of ours, all passes that computed prompts."""

    decode_s: float

    generated_tokens: int
    memory_bytes: int
    """Peak of what the process itself took in memory, above what it had before loading."""

    planned_bytes: int | None = None
    """What our plan of memory says it may take, for the tokens there were."""

    disk_bytes: int = 0
    """Peak of what we had in the spill file."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """What one trial took. Nothing of it is known if its process was killed for want of memory."""

    stage: str
    system: str
    setting: str
    prompt_len: int
    new_tokens: int
    batch: int
    generated_tokens: int | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    tokens_per_s: float | None = None
    memory_bytes: int | None = None
    planned_bytes: int | None = None
    spill_bytes: int | None = None
    limit_bytes: int | None
    used_of_limit_bytes: int | None
    """Peak with the page cache, where there was a limit."""

    @classmethod
    def of(cls, trial: Trial, *, used_of_limit_bytes: int | None = None) -> TrialRow:
        """Return that of a trial of which nothing else is known."""
        return cls(
            stage=trial.stage,
            system=trial.system,
            setting=trial.setting,
            prompt_len=trial.workload.prompt_len,
            new_tokens=trial.workload.new_tokens,
            batch=trial.batch,
            limit_bytes=trial.memory_limit_bytes,
            used_of_limit_bytes=used_of_limit_bytes,
        )

    @property
    def total_s(self) -> float:
        """Time of prefill and decode; without end if it was killed."""
        if self.prefill_s is None or self.decode_s is None:
            return float("inf")
        return self.prefill_s + self.decode_s


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where trials run."""

    checkpoint: Path
    directory: Path
    """For weight stores, offloaded weights and logs."""

    @classmethod
    def of_size(cls, size: str, *, tokenizer: Path, directory: Path) -> Bench:
        """Return one with random weights of a size of OPT's, such as ``30b``, below a directory."""
        from flexgen_helm.model.dummy import write_dummy

        name = f"opt-{size}"
        checkpoint = write_dummy(name, tokenizer=tokenizer, directory=directory / name)
        return cls(checkpoint=checkpoint, directory=directory)


def run_trial(trial: Trial, bench: Bench, *, number: int) -> TrialRow:
    """Carry out a trial.

    Raises:
        CommandError: its process failed, other than for want of memory.
    """
    limit = trial.memory_limit_bytes
    if limit:
        forget_pages(bench.checkpoint)
    with MemoryLimit.make(limit) if limit else nullcontext() as group:
        request = {
            "trial": asdict(trial),
            "checkpoint": str(bench.checkpoint),
            "directory": str(bench.directory),
            "group": str(group.directory) if group else None,
        }
        answer = ask("flexgen_helm.bench.trial_process", request, bench, name=f"trial-{number:02}")
        used = group.peak_bytes if group else None
    return _row(trial, Outcome(**answer) if answer else None, used)


def ask(
    module: str,
    request: Mapping[str, Any],
    bench: Bench,
    *,
    name: str,
    limit_s: float | None = None,
) -> dict[str, Any] | None:
    """Run a module with a request, and return its answer.

    Args:
        module: whose last line of output is the answer as JSON.
        request: its only argument, as JSON.
        bench: where to keep what it says.
        name: of the file with that.
        limit_s: seconds after which it is killed; `None` for all it takes.

    Returns:
        `None` if it was killed.

    Raises:
        CommandError: it failed.
        CommandTimeoutError: it took too long.
    """
    log = bench.directory / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stderr:
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, json.dumps(request)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CommandTimeoutError(
                f"{module} did not end in {limit_s:.0f} s: allow it more time; what it said is in"
                f" {log}"
            ) from error
    if done.returncode == -signal.SIGKILL:
        return None
    if done.returncode != 0:
        raise CommandError(f"{module} ended with status {done.returncode}: the reason is in {log}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _row(trial: Trial, outcome: Outcome | None, used: int | None) -> TrialRow:
    row = TrialRow.of(trial, used_of_limit_bytes=used)
    if outcome is None:
        return row
    seconds = outcome.prefill_s + outcome.decode_s
    return replace(
        row,
        generated_tokens=outcome.generated_tokens,
        prefill_s=round(outcome.prefill_s, 3),
        decode_s=round(outcome.decode_s, 3),
        tokens_per_s=round(outcome.generated_tokens / seconds, 3),
        memory_bytes=outcome.memory_bytes,
        planned_bytes=outcome.planned_bytes,
        spill_bytes=outcome.disk_bytes,
    )
