"""`flexgen-helm stage`: scenario data where HELM looks for it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_stage_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parsers of `flexgen-helm`."""
    parser = subparsers.add_parser(
        "stage",
        help="put scenario data where HELM looks for it, so that it downloads nothing",
        description="Copy or convert the data of scenarios into HELM's output directory, and check"
        " it. What is there already stays.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "scenarios",
        nargs="+",
        metavar="SCENARIO",
        help="HELM's name, such as mmlu, or a .conf file for all of its run entries",
    )
    add(
        "--from",
        dest="source",
        required=True,
        metavar="DIR_OR_HUB",
        help="a directory laid out as HELM's downloads, a data set's name or directory, or hub",
    )
    add("-o", "--output-path", type=Path, metavar="DIR", default=Path("benchmark_output"))
    parser.set_defaults(run=run_stage)


def run_stage(args: argparse.Namespace) -> int:
    """Carry out the command; 1 if some scenario could not be staged."""
    import sys

    from flexgen_helm.errors import StagingError
    from flexgen_helm.staging.layouts import NEED_NOTHING
    from flexgen_helm.staging.stage import stage

    failed = 0
    for scenario, needed in scenarios_named(args.scenarios).items():
        if scenario in NEED_NOTHING:
            print(f"{scenario}: needs no data")
            continue
        try:
            staged = stage(scenario, args.source, args.output_path / "scenarios", needed=needed)
        except StagingError as error:
            failed += 1
            print(f"{scenario}: {error}", file=sys.stderr)
        else:
            note = f"; {staged.note}" if staged.note else ""
            print(f"{scenario}: {len(staged.files)} files checked{note}")
    return 1 if failed else 0


def scenarios_named(named: list[str]) -> dict[str, list[str]]:
    """Return the scenarios that are named, or that a named file has entries of.

    Returns:
        scenario -> files its entries need beside those that every entry needs.
    """
    from flexgen_helm.cli.entries import read_entries
    from flexgen_helm.staging.layouts import files_of_entry, scenario_of_entry

    needed: dict[str, dict[str, None]] = {}
    for name in named:
        for entry in read_entries(Path(name)) if name.endswith(".conf") else [name]:
            files = needed.setdefault(scenario_of_entry(entry), {})
            files |= dict.fromkeys(files_of_entry(entry))
    return {scenario: list(files) for scenario, files in needed.items()}
