"""`helm-run` in a process of its own, and the checks before it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flexgen_helm.cli.run import helm_command
from flexgen_helm.errors import CommandError

RUN_FILES = (
    "run_spec.json",
    "scenario.json",
    "scenario_state.json",
    "stats.json",
    "per_instance_stats.json",
)
"""In the order in which HELM writes them; a run that has them all counts as complete."""


def helm_run(arguments: Sequence[str], *, log: Path) -> None:
    """Run HELM: its log goes to a file, its progress bars stay visible.

    Args:
        arguments: those of `helm-run`.
        log: the file; continued if it is there.

    Raises:
        CommandError: it failed.
    """
    command = helm_command(arguments)
    print(f"$ {shlex.join(command)} >> {shlex.quote(str(log))}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stdout:
        status = subprocess.run(
            [sys.executable, "-m", "helm.benchmark.run", *command[1:]],
            stdout=stdout,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            check=False,
        ).returncode
    if status != 0:
        raise CommandError(
            f"helm-run ended with status {status}: the reason is at the end of {log}; run the same"
            " command again once it is gone, finished requests are not computed twice"
        )


def drop_torn_files(suite: Path) -> list[Path]:
    """Delete files of runs that a killed process has half written, and return them.

    HELM takes a run with all files for complete, whatever is in them.
    """
    torn = [
        path
        for run in sorted(suite.glob("*:*"))
        for path in map(run.joinpath, RUN_FILES)
        if path.is_file() and not _is_json(path)
    ]
    for path in torn:
        path.unlink()
    return torn


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
