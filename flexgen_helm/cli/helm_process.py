"""`helm-run` in a process of its own, and the checks before it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flexgen_helm.adapter.failures import failures_in
from flexgen_helm.cli.run import add_limits, helm_command
from flexgen_helm.errors import CommandError, TablesError
from flexgen_helm.tables.run_directories import RUN_FILES

AGAIN = (
    "run the same command again once the reason is gone, finished requests are not computed twice"
)


def add_helm_options(parser: argparse.ArgumentParser) -> None:
    """Add where HELM reads and writes, and what memory may be used."""
    add = parser.add_argument
    add("-o", "--output-path", type=Path, metavar="DIR", default=Path("benchmark_output"))
    add("--local-path", type=Path, metavar="DIR", default=Path("prod_env"), help="HELM's own")
    add_limits(parser)


@contextmanager
def suite_runs(suite: str, arguments: Sequence[str], options: argparse.Namespace) -> Iterator[Path]:
    """Run what is missing of a suite; lends the directory of its runs, to print tables of.

    Args:
        suite: HELM's name for the runs.
        arguments: of `helm-run`, that say what is run.
        options: as `add_helm_options` has them.

    Raises:
        CommandError: HELM failed, or the output directory cannot be used; or, last, see
            `failures_last`.
    """
    runs: Path = options.output_path / "runs" / suite
    for path in drop_torn_files(runs):
        print(f"{path} was half written: its run is done again")
    log = log_of(suite, options)
    failures = helm_run(helm_arguments(suite, arguments, options), log=log)
    with failures_last(failures, log):
        yield runs


def helm_arguments(suite: str, arguments: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Return all arguments of the `helm-run` that `suite_runs` starts."""
    return [
        *arguments,
        *("--suite", suite),
        *("--output-path", str(options.output_path)),
        *("--local-path", str(options.local_path)),
        "--skip-completed-runs",
    ]


def log_of(suite: str, options: argparse.Namespace) -> Path:
    """Return the file that the log of a suite goes to."""
    file: Path = options.output_path / f"{suite}.log"
    return file


@contextmanager
def failures_last(failures: Sequence[str], log: Path) -> Iterator[None]:
    """Say which runs failed, and why, behind what is printed of the others.

    Raises:
        CommandError: some failed.
    """
    try:
        yield
    except TablesError:
        if not failures:  # else there is nothing to tabulate because of them
            raise
    if failures:
        sys.stdout.flush()
        print("", *(f"failed: {failure}" for failure in failures), sep="\n", file=sys.stderr)
        raise CommandError(
            f"{len(failures)} run(s) failed, as listed above; {log} has more about it: {AGAIN}"
        )


def helm_run(arguments: Sequence[str], *, log: Path) -> list[str]:
    """Run HELM: its log goes to a file, its progress bars stay visible.

    Args:
        arguments: those of `helm-run`.
        log: the file; continued if it is there.

    Returns:
        runs that failed, and why.

    Raises:
        CommandError: it failed otherwise.
    """
    command = helm_command(arguments)
    print(f"$ {shlex.join(command)} >> {shlex.quote(str(log))}", flush=True)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stdout:
            begin = stdout.tell()
            status = subprocess.run(
                [sys.executable, "-m", "flexgen_helm", "run", *command[1:]],
                stdout=stdout,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                check=False,
            ).returncode
    except OSError as error:
        raise CommandError(
            f"{log} cannot be written ({error.strerror or error}): choose another --output-path"
        ) from error
    failures = _failures_behind(begin, log) if status else []
    if status and not failures:
        raise CommandError(
            f"helm-run ended with status {status}: the reason is above, or at the end of {log}:"
            f" {AGAIN}"
        )
    return failures


def _failures_behind(begin: int, log: Path) -> list[str]:
    with log.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(begin)
        return failures_in(lines)


def drop_torn_files(suite: Path) -> list[Path]:
    """Delete the `torn_files` of a suite, and return them."""
    torn = torn_files(suite)
    for path in torn:
        path.unlink()
    return torn


def torn_files(suite: Path) -> list[Path]:
    """Return files of runs that a killed process has half written.

    HELM takes a run with all files for complete, whatever is in them.
    """
    return [
        path
        for run in sorted(suite.glob("*:*"))
        for path in map(run.joinpath, RUN_FILES)
        if path.is_file() and not _is_json(path)
    ]


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
