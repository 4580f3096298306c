"""`flexgen-helm bench offload`."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone

from flexgen_helm.bench.offload_benchmark import STAGES
from flexgen_helm.bench.suites import require_data
from flexgen_helm.bench.trial import ACCELERATE, PEERS, TRANSFORMERS, Bench
from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.bench.options import (
    Benchmarks,
    add_checkpoint_options,
    add_parser,
    checkpoint_of,
    print_report,
    say,
    size,
    workload,
)
from flexgen_helm.errors import BenchmarkError


def add_offload_parser(benchmarks: Benchmarks) -> None:
    """Register ``bench offload``."""
    parser = add_parser(
        benchmarks,
        "offload",
        help="all layers on disk: ours beside transformers in memory and accelerate on disk",
        description="Generate with a checkpoint of random weights whose layers are on disk: ours,"
        " accelerate's disk offload, and transformers with all weights in memory; and what ours"
        " reaches of the machine's rates. Takes an hour. Progress is reported on stderr.",
    )
    add_checkpoint_options(parser, shape="opt-1.3b")
    add = parser.add_argument
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME", help="to run")
    add("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    add("--peer-batches", nargs="+", type=at_least(1), default=[8, 16, 32], metavar="N")
    add(
        "--prefill-heavy",
        type=workload,
        default="512/32",
        metavar="P/N",
        help="prompt tokens and new tokens of a request",
    )
    add("--decode-heavy", type=workload, default="32/128", metavar="P/N", help="likewise")
    add("--requests", type=at_least(1), default=96, metavar="N", help="of ours, prefill-heavy")
    add(
        "--decode-requests",
        type=at_least(1),
        default=384,
        metavar="N",
        help="of ours, decode-heavy",
    )
    add(
        "--memory-limit",
        type=size,
        default="2GB",
        metavar="SIZE",
        help="of ours and accelerate, decode-heavy, with the page cache",
    )
    add("--micro-batches", nargs="+", type=at_least(1), default=[1, 2, 4, 8], metavar="N")
    add("--micro-batch-size", type=at_least(1), default=8, metavar="N")
    add("--rounds", type=at_least(1), default=1, metavar="N", help="times everything is timed")
    parser.set_defaults(run=run_bench_offload)


def run_bench_offload(args: argparse.Namespace) -> int:
    """Carry out ``bench offload``."""
    from flexgen_helm.bench.conditions import machine_conditions, version
    from flexgen_helm.bench.offload import OffloadSession, run_offload_benchmark
    from flexgen_helm.bench.offload_benchmark import OffloadBenchmark

    require_data(args.data, [])
    if ACCELERATE in args.peers and version(ACCELERATE) is None:
        raise BenchmarkError(
            f"{ACCELERATE} is not installed: run pip install 'flexgen_helm[bench]', or leave it out"
            f" with --peers {TRANSFORMERS}"
        )
    benchmark = OffloadBenchmark(
        stages=args.stages,
        peers=args.peers,
        peer_batches=args.peer_batches,
        prefill_heavy=args.prefill_heavy,
        decode_heavy=args.decode_heavy,
        batch=args.requests,
        decode_batch=args.decode_requests,
        memory_limit_bytes=args.memory_limit,
        micro_batches=args.micro_batches,
        micro_batch_size=args.micro_batch_size,
        rounds=args.rounds,
    )
    checkpoint = checkpoint_of(args, dtype="bfloat16")
    conditions = {
        **machine_conditions(datetime.now(timezone.utc)),
        "accelerate": version(ACCELERATE),
        "checkpoint": checkpoint.name,
    }
    session = OffloadSession(
        Bench(checkpoint=checkpoint, directory=args.work_dir.absolute() / "offload"),
        say,
    )
    report = run_offload_benchmark(benchmark, session, conditions)
    print_report(report, as_json=args.json)
    return 0
