"""Staging: from a directory or the hub to where HELM looks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from flexgen_helm.errors import StagingError
from flexgen_helm.files import write_atomically
from flexgen_helm.staging.hub import Row, load_rows, source_of
from flexgen_helm.staging.layouts import check_files, layout_of

HUB = "hub"
"""Says that a scenario's data are to come from the data set known for it."""

LoadRows = Callable[[str, "str | None", str], Iterable[Row]]


@dataclass(frozen=True, kw_only=True)
class Staged:
    """What was done for a scenario."""

    files: list[Path]
    """Those there are now, of which some may have been there before."""

    note: str = ""


def stage(
    scenario: str,
    source: str,
    scenarios: Path,
    *,
    needed: Sequence[str] = (),
    load: LoadRows = load_rows,
) -> Staged:
    """Put a scenario's data where HELM looks for it. What is there already is not touched.

    Args:
        scenario: HELM's name of it, such as ``mmlu``.
        source: a directory laid out as HELM's downloads are, with or without the scenario's name
            below it; or one that `datasets` reads, or a data set of the hub, with the columns of
            the one that is known; or ``hub`` for that one.
        scenarios: HELM's directory, ``benchmark_output/scenarios``.
        needed: files, beside those every scenario of the name needs, that must be there.
        load: what loads a split of a data set.

    Raises:
        StagingError: nothing is known of the scenario, data are missing, or not what HELM reads.
    """
    layout = layout_of(scenario)
    directory = _laid_out(Path(source), scenario)
    target = scenarios / scenario
    note = ""
    if directory is not None:
        for file in check_files(directory, layout, needed):
            _put(target / file, partial(shutil.copyfile, directory / file))
    else:
        note = _from_data_set(scenario, source, target, load)
    return Staged(files=check_files(target, layout, needed), note=note)


def _laid_out(directory: Path, scenario: str) -> Path | None:
    """The directory with a scenario's files; `None` where there is none."""
    patterns = layout_of(scenario).files
    for candidate in (directory / scenario, directory):
        if candidate.is_dir() and any(
            next(candidate.glob(pattern), None) is not None for pattern in patterns
        ):
            return candidate
    return None


def _from_data_set(scenario: str, name: str, target: Path, load: LoadRows) -> str:
    known = source_of(scenario)
    given = "" if name == HUB else name
    if not (given or known.name):
        raise StagingError(
            f"no copy of {scenario} on the hub is known: give --from a directory, or the name of a"
            " data set with its columns"
        )
    config = None if given else known.config
    try:
        # All of it first: nothing is left behind of a data set that lacks a split or a column.
        files = dict(known.files(lambda split: load(given or known.name, config, split)))
    except (StagingError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise StagingError(
            f"{given or known.name} has neither HELM's files"
            f" ({', '.join(layout_of(scenario).files)}) nor is it a data set to make them of:"
            f" {reason}"
        ) from error
    for path, content in files.items():
        _put(target / path, partial(_write_bytes, content))
    return known.note


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _put(path: Path, write: Callable[[Path], object]) -> None:
    if path.exists():
        return
    try:
        write_atomically(path, write)
    except OSError as error:
        raise StagingError(
            f"{path} cannot be written ({error.strerror or error}): choose another --output-path"
        ) from error
