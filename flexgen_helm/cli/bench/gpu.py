"""`flexgen-helm bench gpu`."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path

from flexgen_helm.bench.gpu_benchmark import PEERS, STAGES
from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.bench.options import (
    WORK_DIR,
    Benchmarks,
    add_parser,
    minutes,
    part,
    print_report,
    say,
    size,
    workload,
)
from flexgen_helm.cli.plan import hardware_named
from flexgen_helm.errors import BenchmarkError
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.opt_sizes import SIZES


def add_gpu_parser(benchmarks: Benchmarks) -> None:
    """Register ``bench gpu``."""
    parser = add_parser(
        benchmarks,
        "gpu",
        help="a GPU with its memory capped: ours beside upstream FlexGen and accelerate",
        description="Generate with random weights of OPT's sizes under a cap on the GPU's memory:"
        " ours, upstream FlexGen with its published policies, and accelerate; then the paper's"
        " seven HELM sub-scenarios with fewer requests, as they are and padded. What does not come"
        " to its turn in time is reported without figures. Progress is reported on stderr.",
    )
    add = parser.add_argument
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME")
    add("--models", nargs="+", choices=SIZES, default=["30b", "6.7b"], metavar="SIZE", help="OPT's")
    add("--peers", nargs="*", choices=PEERS, default=list(PEERS), metavar="NAME")
    add("--compressions", nargs="+", default=["w4-kv4", "w4"], metavar="LABEL", help="of ours")
    add("--workload", type=workload, default="512/32", metavar="P/N", help="prompt/new tokens")
    add("--requests", type=at_least(1), default=128, metavar="N", help="of ours, in each trial")
    add("--helm-model", choices=SIZES, default="30b", metavar="SIZE", help="of the sub-scenarios")
    add("--hardware", metavar="FILE", help="profile of this machine, if not measured first")
    add("--helm-share", type=part, default=0.02, metavar="PART", help="of the paper's requests")
    add("--device-memory", type=size, default="16GB", metavar="SIZE", help="cap of the GPU")
    add("--minutes", type=minutes, default=9.0, metavar="N", help="time in all")
    add("--device", default="cuda", help="cuda, or cpu to try the benchmark out")
    add("--work-dir", type=Path, default=WORK_DIR, metavar="DIR", help="stores and logs")
    parser.set_defaults(run=run_bench_gpu)


def run_bench_gpu(args: argparse.Namespace) -> int:
    """Carry out ``bench gpu``."""
    import torch

    from flexgen_helm.bench.conditions import machine_conditions, version
    from flexgen_helm.bench.gpu import run_gpu_benchmark
    from flexgen_helm.bench.gpu_benchmark import GpuBenchmark
    from flexgen_helm.bench.gpu_session import GpuSession
    from flexgen_helm.model.dtypes import resolve_device
    from flexgen_helm.specs.catalog import EMBEDDED_CHECKPOINT

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchmarkError(
            f"PyTorch {torch.__version__} finds no GPU here: run this on a machine with one, or try"
            " it out with --device cpu --peers accelerate --models 125m --helm-model 125m"
        )
    device = resolve_device(args.device)
    for peer in args.peers:
        if version(peer) is None:
            raise BenchmarkError(
                f"{peer} is not installed: run pip install {peer}, or leave it out of --peers"
            )
    benchmark = GpuBenchmark(
        stages=args.stages,
        models=args.models,
        peers=args.peers,
        compressions=[Compression.parse(label).label for label in args.compressions],
        workload=args.workload,
        batch=args.requests,
        helm_model=args.helm_model,
        helm_share=args.helm_share,
        cap_bytes=args.device_memory,
    )
    session = GpuSession(
        EMBEDDED_CHECKPOINT,
        args.work_dir.absolute() / "gpu",
        device=device,
        limit_s=60 * args.minutes,
        announce=say,
    )
    conditions = {
        **machine_conditions(datetime.now(timezone.utc)),
        **{peer: version(peer) for peer in args.peers},
    }
    hardware = hardware_named(args.hardware) if args.hardware else session.calibrate()
    report = run_gpu_benchmark(benchmark, session, hardware, conditions)
    print_report(report, as_json=args.json)
    return 0
