"""Run entries of a ``.conf`` file."""

from __future__ import annotations

from pathlib import Path

from flexgen_helm.errors import InvalidSettingError


def read_entries(conf: Path) -> list[str]:
    """Return the run entries of a file, as HELM reads it.

    Raises:
        InvalidSettingError: it is not there, or not such a file.
    """
    from helm.benchmark.presentation.run_entry import read_run_entries

    if not conf.is_file():
        raise InvalidSettingError(
            f"{conf} is not there: name a file of run entries, such as scenarios/paper_7.conf"
        )
    try:
        return [entry.description for entry in read_run_entries([str(conf)]).entries]
    except Exception as error:  # of the parser of HELM's format
        raise InvalidSettingError(
            f"{conf} is not a file of run entries ({error}): write it as scenarios/offline.conf is"
        ) from error
