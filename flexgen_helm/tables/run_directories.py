"""Where the complete runs under a path are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from flexgen_helm.errors import TablesError
from flexgen_helm.notices import FlexGenWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_FILES = (
    "run_spec.json",
    "scenario.json",
    "scenario_state.json",
    "stats.json",
    "per_instance_stats.json",
)
"""What HELM writes into a run directory, in this order, once the run is done. All of them present
is HELM's own definition of a completed run: the last one says that those before it are whole."""


def complete_runs(path: str | Path) -> list[Path]:
    """Directories of the complete runs under `path`, sorted by suite and run.

    Args:
        path: HELM's output directory, its ``runs`` folder, one suite or one run.

    Warns:
        FlexGenWarning: runs that were begun but not completed; they are left out.

    Raises:
        TablesError: there is no complete run.
    """
    runs = _run_directories(Path(path))
    complete = [run for run in runs if is_complete(run)]
    incomplete = [run for run in runs if not is_complete(run)]
    if not complete:
        raise TablesError(_nothing_to_read(Path(path), incomplete))
    if incomplete:
        warnings.warn(
            f"{len(incomplete)} incomplete run(s) skipped, rerun helm-run to complete them:"
            f" {_listed(incomplete)}",
            FlexGenWarning,
            stacklevel=3,
        )
    return complete


def is_complete(run: Path) -> bool:
    """Whether HELM has written all files of a run."""
    return all((run / name).exists() for name in RUN_FILES)


def any_complete(suite: Path) -> bool:
    """Whether a suite has a complete run."""
    return any(map(is_complete, _subdirectories(suite)))


def _run_directories(path: Path) -> list[Path]:
    """Complete or not; a directory reached twice, by a symlink, counts once."""
    if _is_run(path):
        return [path.resolve()]
    root = path / "runs" if (path / "runs").is_dir() else path
    found = {
        run.resolve()
        for suite in (root, *_subdirectories(root))
        for run in _subdirectories(suite)
        if _is_run(run)
    }
    return sorted(found, key=lambda run: (run.parent.name, run.name, run))


def _is_run(path: Path) -> bool:
    """A killed run may hold no file yet, but a colon is in the name of every run."""
    return path.is_dir() and (":" in path.name or any((path / name).exists() for name in RUN_FILES))


def _subdirectories(path: Path) -> Iterator[Path]:
    return (child for child in path.iterdir() if child.is_dir()) if path.is_dir() else iter(())


def _nothing_to_read(path: Path, incomplete: list[Path]) -> str:
    found = "does not exist"
    if path.exists():
        found = "holds no HELM run"
    if incomplete:
        found = (
            f"holds no complete HELM run, only {len(incomplete)} incomplete: {_listed(incomplete)}"
        )
    return (
        f"{str(path)!r} {found}; expected is helm-run's output directory (benchmark_output), its"
        f" runs folder, a suite or one run with {', '.join(RUN_FILES)}: run helm-run first, or"
        f" name the directory it wrote to"
    )


def _listed(runs: list[Path], limit: int = 10) -> str:
    names = [f"{run.parent.name}/{run.name}" for run in runs]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
