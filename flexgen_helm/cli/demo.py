"""``flexgen-helm demo``: the main job on a model that ships with the package, without network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.helm_process import failures_last, helm_run
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.deployment import DeploymentSpec

MODEL = "opt-embedded"
SUITE = "demo"
SCENARIOS = (
    "dyck_language:num_parenthesis_pairs=3",
    "synthetic_reasoning:mode=variable_substitution",
)
"""HELM scenarios that need no download and that the embedded model was trained for."""

SETTINGS = ("none", "w8-kv8", "w4-kv4", "w3-kv3", "w2-kv2")
"""Compression settings compared, from no loss to too much."""


def add_demo_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register ``demo [--settings LABEL ...] [--max-eval-instances N] [--output-path DIR]``."""
    parser = subparsers.add_parser(
        "demo",
        help="compare compression settings of the embedded model with HELM, offline",
        description="Run helm-run on a small trained OPT model that ships with the package, for"
        " every scenario and compression setting, then print scores and costs side by side. Run"
        " again, it computes only what is missing.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--settings", nargs="+", metavar="LABEL", default=SETTINGS)
    parser.add_argument("--scenarios", nargs="+", metavar="ENTRY", default=SCENARIOS)
    parser.add_argument("-m", "--max-eval-instances", type=at_least(1), metavar="N", default=200)
    parser.add_argument("-t", "--num-train-trials", type=int, metavar="N", default=1)
    parser.add_argument(
        "-o", "--output-path", type=Path, metavar="DIR", default=Path("demo_output")
    )
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Run HELM, then write and print the tables."""
    from flexgen_helm.cli.tables import print_comparison
    from flexgen_helm.tables.write import write_tables

    log = args.output_path / "helm-run.log"
    failures = helm_run(
        [
            *("--run-entries", *run_entries(args.scenarios, args.settings)),
            *("--suite", SUITE),
            *("--max-eval-instances", str(args.max_eval_instances)),
            *("--num-train-trials", str(args.num_train_trials)),
            *("--output-path", str(args.output_path)),
            *("--local-path", str(args.output_path / "prod_env")),
        ],
        log=log,
    )
    runs = args.output_path / "runs" / SUITE
    with failures_last(failures, log):
        written = write_tables(runs, args.output_path / "tables")
        print()
        print_comparison(runs)
        print()
        for path in written:
            print(f"wrote {path}")
    return 0


def run_entries(scenarios: Sequence[str], settings: Sequence[str]) -> list[str]:
    """HELM run entries of every scenario with every compression setting of the embedded model.

    Raises:
        InvalidCompressionError: one of the labels is none.
    """
    compressions = [Compression.parse(label) for label in settings]
    models = [DeploymentSpec(checkpoint=MODEL, compression=c).name for c in compressions]
    return [
        f"{scenario}{',' if ':' in scenario else ':'}model={model}"
        for model in models
        for scenario in scenarios
    ]
