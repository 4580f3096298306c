"""Tables as files that are either whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flexgen_helm.errors import TablesError
from flexgen_helm.files import write_atomically
from flexgen_helm.tables.collect import costs_of, metrics_of
from flexgen_helm.tables.columns import MEASURED
from flexgen_helm.tables.run_directories import complete_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from flexgen_helm.tables.compare import Comparison


def write_tables(path: str | Path, out: str | Path) -> list[Path]:
    """Write both tables of the runs under `path` as Parquet and CSV.

    The same runs give the same bytes.

    Args:
        path: HELM's output directory, its ``runs`` folder, one suite or one run.
        out: directory for the files; made if it does not exist.

    Returns:
        The files written: ``scenario_metrics`` and ``efficiency``, each ``.parquet`` and ``.csv``.

    Raises:
        TablesError: no complete run, a damaged file, or `out` cannot be written to.
    """
    runs = complete_runs(path)
    tables = {"scenario_metrics": metrics_of(runs), "efficiency": costs_of(runs)}
    return _write_all(tables, Path(out))


def write_comparison(comparison: Comparison, out: str | Path) -> list[Path]:
    """Write a comparison, as Parquet and CSV.

    Args:
        comparison: what `compare` has returned.
        out: directory for the files; made if it does not exist.

    Returns:
        The files written: ``comparison``, ``overall``, ``efficiency`` and ``scores``, which is the
        comparison without what was measured: the same answers, with the same log-probabilities,
        give the same bytes.

    Raises:
        TablesError: `out` cannot be written to.
    """
    settings = comparison.settings
    tables = {
        "scores": settings[[name for name in settings if name not in MEASURED]],
        "comparison": settings,
        "overall": comparison.overall,
        "efficiency": comparison.costs,
    }
    return _write_all(tables, Path(out))


def write_parquet(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as Parquet, dtypes included."""
    return _atomically(
        path, lambda temporary: table.to_parquet(temporary, engine="pyarrow", index=False)
    )


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV: every digit of a number, an empty field for a missing one."""
    return _atomically(
        path,
        lambda temporary: table.to_csv(
            temporary, index=False, lineterminator="\n", encoding="utf-8"
        ),
    )


def _write_all(tables: Mapping[str, pd.DataFrame], out: Path) -> list[Path]:
    written = []
    for name, table in tables.items():
        written.append(write_parquet(table, out / f"{name}.parquet"))
        written.append(write_csv(table, out / f"{name}.csv"))
    return written


def _atomically(path: Path, write: Callable[[Path], object]) -> Path:
    try:
        write_atomically(path, write)
    except OSError as error:
        raise TablesError(
            f"{str(path)!r} cannot be written ({error.strerror or error}), expected is a file in a"
            f" writable directory: name another place"
        ) from error
    return path
