"""One timed `helm-run` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flexgen_helm.bench.clients import THEIRS, Client, write_peer
from flexgen_helm.bench.log_blocks import EXECUTION, block_seconds
from flexgen_helm.bench.suites import NLTK_DATA, Suite, stage_data
from flexgen_helm.errors import CommandError
from flexgen_helm.tables.collect import efficiency


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a benchmark runs: what it reads, and the directory it writes to."""

    data: Path
    """Tokenizer and scenario data."""

    checkpoint: Path
    """What both clients compute with."""

    positions: int
    """Longest sequence of the model, in tokens."""

    directory: Path
    """Holds HELM's output, its logs, and a local path for every run."""

    @property
    def output(self) -> Path:
        """HELM's ``--output-path``, one for all runs, with a HELM suite for each."""
        return self.directory / "output"


class Size(NamedTuple):
    """How much of a scenario is run."""

    instances: int
    """``--max-eval-instances``"""

    train_trials: int
    """``--num-train-trials``: selections of few-shot examples, each asking all instances."""


@dataclass(frozen=True, kw_only=True)
class HelmRun:
    """A `helm-run` to be made."""

    suite: Suite
    client: Client
    size: Size

    stage: str
    """What the run is for."""

    number: int
    """Tells it from the other runs of a benchmark."""

    @property
    def name(self) -> str:
        """Name of its HELM suite, its log and its local path."""
        return f"{self.number:02}-{self.suite.name}-{self.stage}-{self.client.label}"


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """What one `helm-run` took."""

    suite: str
    stage: str
    client: str
    dtype: str
    threads: int
    instances: int
    train_trials: int
    requests: int

    generated_tokens: int
    """Over all requests; fewer than allowed where completions end early."""

    wall_s: float
    """From the start of the process to its end."""

    execution_s: float
    """Of this, between having requests and having results."""


class Timed(NamedTuple):
    """A finished run and where its results are."""

    row: RunRow
    results: Path


def timed_run(run: HelmRun, site: Site) -> Timed:
    """Run a suite with nothing in HELM's request cache.

    Raises:
        CommandError: `helm-run` failed, or logged nothing of the time it took.
    """
    local_path = site.directory / "local_paths" / run.name
    local_path.mkdir(parents=True)
    stage_data(run.suite, data=site.data, output=site.output)
    if run.client.name == THEIRS:
        write_peer(
            run.client, checkpoint=site.checkpoint, positions=site.positions, local_path=local_path
        )
    log = site.directory / "logs" / f"{run.name}.log"
    command = helm_command(run, output=site.output, local_path=local_path)
    wall_s = wall_seconds(command, log=log, nltk_data=site.data / NLTK_DATA)
    results = site.output / "runs" / run.name
    row = _row(run, results, wall_s=wall_s, execution_s=execution_seconds(log))
    return Timed(row=row, results=results)


def helm_command(run: HelmRun, *, output: Path, local_path: Path) -> list[str]:
    """Return the command line: `helm-run` of this environment with what the run asks for."""
    return [
        *(sys.executable, "-m", *run.client.program),
        *("--run-entries", f"{run.suite.entry},model={run.client.model}"),
        *("--suite", run.name),
        *("--max-eval-instances", str(run.size.instances)),
        *("--num-train-trials", str(run.size.train_trials)),
        *("--num-threads", str(run.client.threads)),
        *("--output-path", str(output), "--local-path", str(local_path)),
    ]


def wall_seconds(command: list[str], *, log: Path, nltk_data: Path) -> float:
    """Run a command and return the seconds until it ended.

    Args:
        command: logs to stdout, and draws its progress bars on stderr.
        log: gets stdout; stderr goes to an ``.err`` file beside it.
        nltk_data: where nltk finds what it would download otherwise.

    Raises:
        CommandError: it ended with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "NLTK_DATA": str(nltk_data), "HF_HUB_OFFLINE": "1"}
    with log.open("w") as stdout, log.with_suffix(".err").open("w") as stderr:
        begin_s = time.perf_counter()
        status = subprocess.run(
            command, stdout=stdout, stderr=stderr, env=environment, check=False
        ).returncode
        wall_s = time.perf_counter() - begin_s
    if status != 0:
        raise CommandError(
            f"helm-run ended with status {status}: the reason is at the end of {log} or of the"
            " .err file beside it"
        )
    return wall_s


def execution_seconds(log: Path) -> float:
    """Seconds between having requests and having results, as logged.

    Raises:
        CommandError: the log does not tell.
    """
    with log.open(encoding="utf-8") as lines:
        seconds = block_seconds(lines, EXECUTION)
    if not seconds:
        raise CommandError(
            f"{log} has no block {EXECUTION.pattern!r}, so there is no execution time to report:"
            " leave HELM's log level (HELM_LOG_LEVEL, LOG_LEVEL) at INFO"
        )
    return sum(seconds)


def _row(run: HelmRun, results: Path, *, wall_s: float, execution_s: float) -> RunRow:
    [cost] = efficiency(results).to_dict("records")
    return RunRow(
        suite=run.suite.name,
        stage=run.stage,
        client=run.client.name,
        dtype=run.client.dtype if run.client.name == THEIRS else cost["dtype"],
        threads=run.client.threads,
        instances=run.size.instances,
        train_trials=run.size.train_trials,
        requests=cost["requests"],
        generated_tokens=cost["generated_tokens"],
        wall_s=round(wall_s, 3),
        execution_s=round(execution_s, 3),
    )
