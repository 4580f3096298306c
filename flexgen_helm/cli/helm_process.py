"""`helm-run` in a process of its own, and the checks before it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flexgen_helm.cli.run import add_limits, helm_command
from flexgen_helm.errors import CommandError
from flexgen_helm.tables.run_directories import RUN_FILES


def add_helm_options(parser: argparse.ArgumentParser) -> None:
    """Add where HELM reads and writes, and what memory may be used."""
    add = parser.add_argument
    add("-o", "--output-path", type=Path, metavar="DIR", default=Path("benchmark_output"))
    add("--local-path", type=Path, metavar="DIR", default=Path("prod_env"), help="HELM's own")
    add_limits(parser)


def run_suite(suite: str, arguments: Sequence[str], options: argparse.Namespace) -> Path:
    """Run what is missing of a suite; return the directory of its runs.

    Args:
        suite: HELM's name for the runs.
        arguments: of `helm-run`, that say what is run.
        options: as `add_helm_options` has them.

    Raises:
        CommandError: HELM failed, or the output directory cannot be used.
    """
    runs: Path = options.output_path / "runs" / suite
    for path in drop_torn_files(runs):
        print(f"{path} was half written: its run is done again")
    helm_run(
        [
            *arguments,
            *("--suite", suite),
            *("--output-path", str(options.output_path)),
            *("--local-path", str(options.local_path)),
            "--skip-completed-runs",
        ],
        log=options.output_path / f"{suite}.log",
    )
    return runs


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
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stdout:
            status = subprocess.run(
                [sys.executable, "-m", "helm.benchmark.run", *command[1:]],
                stdout=stdout,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                check=False,
            ).returncode
    except OSError as error:
        raise CommandError(
            f"{log} cannot be written ({error.strerror or error}): choose another --output-path"
        ) from error
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
