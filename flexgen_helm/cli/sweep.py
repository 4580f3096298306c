"""`flexgen-helm sweep`: one suite under several compression settings, compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from flexgen_helm.cli.helm_process import drop_torn_files, helm_run
from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.deployment import PREFIX, DeploymentSpec

SETTINGS = "none,w8,w4,w4-kv4,w3,w2-kv2"


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
    add("--suite", metavar="NAME", help="HELM's name for the runs (default: that of the conf)")
    add("-m", "--max-eval-instances", type=int, metavar="N", default=1000)
    add("-t", "--num-train-trials", type=int, metavar="N", default=1)
    add("-o", "--output-path", type=Path, metavar="DIR", default=Path("benchmark_output"))
    add("--local-path", type=Path, metavar="DIR", default=Path("prod_env"), help="HELM's own")
    add("--reference", metavar="LABEL", help="setting others are compared with (the first one)")
    add("--dtype", metavar="NAME", default="auto", help="compute dtype of all settings")
    for tier in ("device", "host", "disk"):
        add(f"--{tier}-memory", metavar="SIZE", help=f"of the {tier} that may be used")
    add("--offload-dir", metavar="DIR", help="for weight stores and what is spilled")
    parser.set_defaults(run=run_sweep)


def run_sweep(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from flexgen_helm.adapter.limits import MEMORY_VARIABLES, set_limits
    from flexgen_helm.cli.tables import print_comparison, write_all

    settings = [Compression.parse(label).label for label in args.settings.split(",")]
    reference = args.reference or settings[0]
    check(args, settings, reference)
    set_limits({t: getattr(args, f"{t}_memory") for t in MEMORY_VARIABLES}, args.offload_dir)
    suite = args.suite or args.conf.stem
    runs = args.output_path / "runs" / suite
    for path in drop_torn_files(runs):
        print(f"{path} was half written: its run is done again")
    helm_run(
        [
            *("--conf-paths", str(args.conf)),
            *("--models-to-run", *deployments(args.model, settings, args.dtype)),
            *("--suite", suite),
            *("--max-eval-instances", str(args.max_eval_instances)),
            *("--num-train-trials", str(args.num_train_trials)),
            *("--output-path", str(args.output_path)),
            *("--local-path", str(args.local_path)),
            "--skip-completed-runs",
        ],
        log=args.output_path / f"{suite}.log",
    )
    print()
    comparison = print_comparison(runs, reference=reference)
    print()
    title = f"{args.model}: {suite} under {len(settings)} compression settings"
    for path in write_all(comparison, runs, args.output_path / "tables" / suite, title):
        print(f"wrote {path}")
    return 0


def deployments(model: str, settings: list[str], dtype: str = "auto") -> list[str]:
    """Return the deployments of a model under some settings."""
    return [
        DeploymentSpec(
            checkpoint=model.removeprefix(PREFIX),
            compression=Compression.parse(setting),
            dtype=dtype,
        ).name
        for setting in settings
    ]


def check(args: argparse.Namespace, settings: list[str], reference: str) -> None:
    """Check what can be checked before anything is run.

    Raises:
        InvalidSettingError: a setting is named twice, the reference is none of them, or there is no
            such conf.
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
    if not args.conf.is_file():
        raise InvalidSettingError(
            f"--conf {args.conf} is not there: name a file of run entries, such as"
            " scenarios/compression_sweep.conf"
        )
