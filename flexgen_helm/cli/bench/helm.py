"""`flexgen-helm bench helm`."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from flexgen_helm.bench.checkpoint import SHAPES
from flexgen_helm.bench.clients import PEERS, peer_client
from flexgen_helm.bench.suites import DEFAULT, SUITES, require_data
from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.bench.options import (
    Benchmarks,
    add_checkpoint_options,
    add_parser,
    checkpoint_of,
    print_report,
    say,
)
from flexgen_helm.errors import BenchmarkError

if TYPE_CHECKING:
    from flexgen_helm.bench.helm_run import RunRow


def add_helm_parser(benchmarks: Benchmarks) -> None:
    """Register ``bench helm``."""
    parser = add_parser(
        benchmarks,
        "helm",
        help="helm-run with our client and runner, and with HELM's HuggingFaceClient",
        description="Run the same HELM suites, on a checkpoint of random weights, through HELM's"
        " HuggingFaceClient and through ours. Progress is reported on stderr.",
    )
    add_checkpoint_options(parser, shape="opt-125m")
    add = parser.add_argument
    add("--suites", nargs="+", choices=SUITES, default=DEFAULT, metavar="NAME", help="to run")
    add(
        "-m",
        "--max-eval-instances",
        type=at_least(1),
        default=100,
        metavar="N",
        help="as helm-run's",
    )
    add("-t", "--num-train-trials", type=at_least(1), default=3, metavar="N", help="as helm-run's")
    add("--rounds", type=at_least(1), default=1, metavar="N", help="times each suite is timed")
    add("--peers", nargs="+", default=list(PEERS), metavar="DTYPE-THREADS", help="HELM's client")
    add(
        "--pilot-instances",
        type=at_least(0),
        default=8,
        metavar="N",
        help="instances on which the fastest peer is found; 0 to time all of them in full",
    )
    add(
        "--score-instances",
        type=at_least(0),
        default=10,
        metavar="N",
        help="instances on which scores are compared in float32; 0 not to compare them",
    )
    parser.set_defaults(run=run_bench_helm)


def run_bench_helm(args: argparse.Namespace) -> int:
    """Carry out ``bench helm``."""
    from flexgen_helm.bench.conditions import machine_conditions
    from flexgen_helm.bench.helm import HelmBenchmark, HelmSession, run_helm_benchmark
    from flexgen_helm.bench.helm_run import Site, Size

    suites = [SUITES[name] for name in args.suites]
    require_data(args.data, suites)
    benchmark = HelmBenchmark(
        suites=suites,
        size=Size(instances=args.max_eval_instances, train_trials=args.num_train_trials),
        rounds=args.rounds,
        peers=[peer_client(setting) for setting in args.peers],
        pilot_instances=min(args.pilot_instances, args.max_eval_instances),
        score_instances=min(args.score_instances, args.max_eval_instances),
    )
    now = datetime.now(timezone.utc)
    site = Site(
        data=args.data.absolute(),
        checkpoint=checkpoint_of(args),
        positions=SHAPES[args.shape].max_position_embeddings,
        directory=_new_directory(args.work_dir.absolute() / f"helm-{now:%Y%m%dT%H%M%S}"),
    )
    about = {"checkpoint": site.checkpoint.name, "data": str(args.data)}
    say(f"HELM's output and logs are in {site.directory}")
    report = run_helm_benchmark(
        benchmark, HelmSession(site, _announce), {**machine_conditions(now), **about}
    )
    print_report(report, as_json=args.json)
    return 0


def _new_directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise BenchmarkError(
            f"{path} is there already, and a benchmark needs a directory of its own: wait a second"
            " or name another with --work-dir"
        ) from error
    return path


def _announce(row: RunRow) -> None:
    say(
        f"{row.suite}, {row.stage}: {row.client}, {row.dtype}, {row.threads} threads,"
        f" {row.requests} requests: {row.wall_s:.1f} s, {row.execution_s:.1f} s of it execution"
    )
