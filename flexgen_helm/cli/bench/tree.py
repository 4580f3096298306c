"""`flexgen-helm bench tree`."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone

from flexgen_helm.bench.suites import require_data
from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.bench.options import (
    Benchmarks,
    add_checkpoint_options,
    add_parser,
    checkpoint_of,
    print_report,
    say,
)


def add_tree_parser(benchmarks: Benchmarks) -> None:
    """Register ``bench tree``."""
    parser = add_parser(
        benchmarks,
        "tree",
        help="time and memory of many requests: linear in unique tokens, and flat",
        description="Arrange ever more prompts as prefix trees, and compute ever more requests with"
        " a checkpoint of random weights. Progress is reported on stderr.",
    )
    add_checkpoint_options(parser, shape="tiny")
    add = parser.add_argument
    add("--arranged", nargs="+", type=at_least(1), default=[10_000, 100_000], metavar="N")
    add("--computed", nargs="+", type=at_least(1), default=[1000, 2500, 5000, 10_000], metavar="N")
    parser.set_defaults(run=run_bench_tree)


def run_bench_tree(args: argparse.Namespace) -> int:
    """Carry out ``bench tree``."""
    from flexgen_helm.bench.conditions import machine_conditions
    from flexgen_helm.bench.tree import run_tree_benchmark

    require_data(args.data, [])
    checkpoint = checkpoint_of(args)
    report = run_tree_benchmark(
        checkpoint=checkpoint,
        arranged=args.arranged,
        computed=args.computed,
        conditions={
            **machine_conditions(datetime.now(timezone.utc)),
            "checkpoint": checkpoint.name,
        },
        announce=say,
    )
    print_report(report, as_json=args.json)
    return 0
