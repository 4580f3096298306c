"""`flexgen-helm bench`: measure ourselves beside others on this machine."""

from __future__ import annotations

import argparse

from flexgen_helm.cli.bench.gpu import add_gpu_parser
from flexgen_helm.cli.bench.helm import add_helm_parser
from flexgen_helm.cli.bench.offload import add_offload_parser
from flexgen_helm.cli.bench.plan import add_plan_parser
from flexgen_helm.cli.bench.tree import add_tree_parser


def add_bench_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``bench BENCHMARK``."""
    parser = subparsers.add_parser(
        "bench",
        help="measure speed beside other software, on this machine",
        description="Every benchmark prints conditions, measurements and ratios; with --json, one"
        " JSON object with `ratios`, `conditions` and `rows`.",
    )
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    add_helm_parser(benchmarks)
    add_tree_parser(benchmarks)
    add_offload_parser(benchmarks)
    add_plan_parser(benchmarks)
    add_gpu_parser(benchmarks)
