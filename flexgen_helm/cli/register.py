"""`flexgen-helm register`: makes our models known to HELM commands that load no plugins.

``helm-summarize`` and ``helm-server`` read ``prod_env/*.yaml`` only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from flexgen_helm.cli.writing import writing
from flexgen_helm.errors import DeploymentError
from flexgen_helm.files import write_text_atomically

Entry = dict[str, Any]

_REMEDY = "correct it, move it away, or choose another --local-path"


def add_register_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parsers of `flexgen-helm`."""
    parser = subparsers.add_parser(
        "register",
        help="write our models into prod_env, for helm-summarize and helm-server",
        description="Write model metadata, deployments and tokenizers into the files HELM reads"
        " from its local path. Entries of others are kept, comments are not.",
    )
    parser.add_argument(
        "--local-path",
        type=Path,
        default=Path("prod_env"),
        help="HELM's --local-path (%(default)s)",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="DEPLOYMENT",
        help="deployments to write, e.g. flexgen/opt-30b-w4 or flexgen//data/my-opt-w4"
        " (default: every known model with every compression setting)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace entries of the same name, though they may have been edited",
    )
    parser.set_defaults(run=run_register)


def run_register(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from flexgen_helm.plugin import registered_names

    written = write_registrations(
        args.local_path, args.models or registered_names(), overwrite=args.overwrite
    )
    for file, count in written.items():
        print(f"{file}: {count} entries written")
    return 0


def write_registrations(
    local_path: Path, names: Sequence[str], *, overwrite: bool = False
) -> dict[Path, int]:
    """Merge deployments and what they need into the files in HELM's local path.

    Returns:
        file -> entries added or replaced.

    Raises:
        DeploymentError: a name is no deployment of ours, or a file there is not HELM's.
        InvalidSettingError: a file there cannot be written.
    """
    from helm.benchmark import config_registry as files

    from flexgen_helm.plugin import build

    registrations = [build(name) for name in names]
    sections = {
        (files.MODEL_METADATA_FILE, "models"): [r.metadata for r in registrations],
        (files.MODEL_DEPLOYMENTS_FILE, "model_deployments"): [r.deployment for r in registrations],
        (files.TOKENIZER_CONFIGS_FILE, "tokenizer_configs"): [r.tokenizer for r in registrations],
    }
    return {
        local_path / file: merge_file(
            local_path / file, section, map(to_entry, values), overwrite=overwrite
        )
        for (file, section), values in sections.items()
    }


def merge_file(path: Path, section: str, entries: Iterable[Entry], *, overwrite: bool) -> int:
    """Add entries to a section of a YAML file, by name; return how many were added or replaced.

    See `write_registrations` for errors.
    """
    content = _read(path, section)
    merged = {entry["name"]: entry for entry in content[section]}
    wanted = {entry["name"]: entry for entry in entries}
    news = {
        name: entry
        for name, entry in wanted.items()
        if name not in merged or (overwrite and merged[name] != entry)
    }
    if news:
        content[section] = list((merged | news).values())
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        with writing(path, "--local-path"):
            write_text_atomically(path, text)
    return len(news)


def to_entry(value: Any) -> Entry:
    """Turn one of HELM's dataclasses into what its YAML readers expect."""
    return _without_defaults(asdict(value))


def _without_defaults(fields: Entry) -> Entry:
    """Leave out what HELM fills in: `None`s and `deprecated: false`."""
    return {
        name: _without_defaults(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None and value is not False
    }


def _read(path: Path, section: str) -> Entry:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # a parser's has several lines
        raise DeploymentError(f"{path} cannot be read ({reason}): {_REMEDY}") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not isinstance(content.get(section, []), list):
        raise DeploymentError(f"{path} has no list {section!r}, so it is not HELM's: {_REMEDY}")
    content = {section: [], **content}
    for entry in content[section]:
        if not isinstance(entry, dict) or "name" not in entry:
            raise DeploymentError(f"{path} has an entry without a name ({entry}): {_REMEDY}")
    return content
