"""`flexgen-helm sweep`: one suite under several compression settings, compared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.dry_run import add_dry_run, print_runs
from flexgen_helm.cli.entries import read_entries
from flexgen_helm.cli.helm_process import add_helm_options, suite_runs
from flexgen_helm.cli.run import apply_limits
from flexgen_helm.cli.writing import writing
from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.files import write_text_atomically
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.deployment import DTYPE_SUFFIXES, PREFIX, DeploymentSpec
from flexgen_helm.tables.run_directories import any_complete

SETTINGS = "none,w8,w4,w4-kv4,w3,w2-kv2"

SIZE_FILE = "size.json"
"""Beside the tables: what HELM's run names do not say of the suite's complete runs, and must be the
same when it goes on."""


def add_sweep_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parsers of `flexgen-helm`."""
    parser = subparsers.add_parser(
        "sweep",
        help="run a suite under several compression settings, and compare them",
        description="Run a suite once for every compression setting of a model, in one helm-run,"
        " and write tables, plots and a report that compare them. Run again, it does only what is"
        " missing.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="such as opt-30b, a hub id, or a checkpoint's directory")
    add("--settings", metavar="LABELS", default=SETTINGS, help="separated by commas")
    add("-c", "--conf", type=Path, required=True, help="run entries without a model")
    add("--suite", metavar="NAME", help="HELM's name for the runs (that of the conf)")
    add(
        "-m",
        "--max-eval-instances",
        type=at_least(1),
        metavar="N",
        default=1000,
        help="of each entry",
    )
    add(
        "-t",
        "--num-train-trials",
        type=at_least(1),
        metavar="N",
        help="instead of each entry's own",
    )
    add("--reference", metavar="LABEL", help="setting others are compared with (the first one)")
    add("--dtype", choices=DTYPE_SUFFIXES, default="auto", help="compute dtype of all settings")
    add_helm_options(parser)
    add_dry_run(parser)
    parser.set_defaults(run=run_sweep)


def run_sweep(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from flexgen_helm.cli.tables import print_comparison, write_all

    settings = [Compression.parse(label).label for label in args.settings.split(",")]
    reference = Compression.parse(args.reference).label if args.reference else settings[0]
    check(args, settings, reference)
    apply_limits(args)
    swept = deployments(args.model, settings, args.dtype)
    suite = args.suite or args.conf.stem
    tables = args.output_path / "tables" / suite
    trials = args.num_train_trials
    arguments = [
        *("--conf-paths", str(args.conf)),
        *("--models-to-run", *swept),
        *("--max-eval-instances", str(args.max_eval_instances)),
        *(("--num-train-trials", str(trials)) if trials else ()),
    ]
    if args.dry_run:
        check_size(args, suite, tables / SIZE_FILE)
        print_runs(suite, arguments, args, tables)
        return 0
    with (
        kept_size(args, suite, tables / SIZE_FILE),
        suite_runs(suite, arguments, args) as runs,
    ):
        print()
        comparison = print_comparison(runs, reference=reference, deployments=swept)
        print()
        title = f"{args.model}: {suite} under {len(settings)} compression settings"
        for path in write_all(comparison, tables, title):
            print(f"wrote {path}")
    return 0


def deployments(model: str, settings: Sequence[str], dtype: str = "auto") -> list[str]:
    """Return the deployments of a model under some settings.

    Raises:
        DeploymentError: the model's own name ends like a setting, and would be taken for one.
    """
    return [
        DeploymentSpec(
            checkpoint=model.removeprefix(PREFIX),
            compression=Compression.parse(setting),
            dtype=dtype,
        ).name
        for setting in settings
    ]


def check(args: argparse.Namespace, settings: Sequence[str], reference: str) -> None:
    """Check what can be checked before anything is run.

    Raises:
        InvalidSettingError: a setting is named twice, the reference is none of them, there is no
            such conf, or its entries name models of their own.
    """
    if len(set(settings)) < len(settings):
        raise InvalidSettingError(
            f"--settings {args.settings} names a setting twice: name each once"
        )
    if reference not in settings:
        raise InvalidSettingError(
            f"--reference {reference} is not among the settings {', '.join(settings)}: add it, or"
            " choose one of them"
        )
    named = [entry for entry in read_entries(args.conf) if "model=" in entry]
    if named:
        raise InvalidSettingError(
            f"{args.conf} names models ({named[0]}): leave them out, --model is swept"
        )


@contextmanager
def kept_size(args: argparse.Namespace, suite: str, file: Path) -> Iterator[None]:
    """Have it noted how many instances and trials a sweep has, before it has runs of that size.

    Raises:
        InvalidSettingError: see `check_size`, or nothing can be noted.
    """
    check_size(args, suite, file)
    with writing(file, "--output-path"):
        write_text_atomically(file, json.dumps(size_of(args)))
    try:
        yield
    finally:
        if not has_runs(args, suite):
            file.unlink()


def has_runs(args: argparse.Namespace, suite: str) -> bool:
    """Whether a suite has complete runs."""
    return any_complete(args.output_path / "runs" / suite)


def check_size(args: argparse.Namespace, suite: str, file: Path) -> None:
    """Check that a sweep goes on with as many instances and trials as it began with.

    Raises:
        InvalidSettingError: they are others, so that what is there could not be compared, or it
            cannot be read how many they were.
    """
    if not (file.is_file() and has_runs(args, suite)):
        return
    size = size_of(args)
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidSettingError(
            f"{file} is damaged ({error}), which says what suite {suite} was begun with: delete it"
            f" if that was {size}, or choose another --suite"
        ) from error
    if begun != size:
        raise InvalidSettingError(
            f"suite {suite} was begun with {begun}, this is {size}: its runs could not be compared,"
            " choose another --suite"
        )


def size_of(args: argparse.Namespace) -> dict[str, int | None]:
    """Return what runs of a sweep must have in common."""
    return {
        "max_eval_instances": args.max_eval_instances,
        "num_train_trials": args.num_train_trials,
    }
