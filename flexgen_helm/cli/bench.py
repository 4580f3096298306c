"""`flexgen-helm bench`: measure ourselves beside others on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from flexgen_helm.bench.checkpoint import SHAPES, random_checkpoint
from flexgen_helm.bench.clients import PEERS, peer_client
from flexgen_helm.bench.gpu import PEERS as GPU_PEERS
from flexgen_helm.bench.gpu import STAGES as GPU_STAGES
from flexgen_helm.bench.offload import STAGES
from flexgen_helm.bench.plan import STAGES as PLAN_STAGES
from flexgen_helm.bench.suites import DEFAULT, SUITES, TOKENIZER, require_data
from flexgen_helm.bench.trial import ACCELERATE, TRANSFORMERS, Bench, Workload
from flexgen_helm.bench.trial import PEERS as PEER_SYSTEMS
from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.plan import hardware_named
from flexgen_helm.cli.terminal import terminal_width
from flexgen_helm.errors import BenchmarkError
from flexgen_helm.specs.opt_sizes import SIZES
from flexgen_helm.units import parse_bytes

if TYPE_CHECKING:
    from flexgen_helm.bench.helm_run import RunRow
    from flexgen_helm.bench.plan import Machine
    from flexgen_helm.bench.report import Report, Row

DATA = Path("../shared/data")
"""Where tokenizer and scenario data are beside the checkout on some machines."""

WORK_DIR = Path("bench_output")


def add_bench_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``bench BENCHMARK``."""
    parser = subparsers.add_parser(
        "bench",
        help="measure speed beside other software, on this machine",
        description="Every benchmark prints conditions, measurements and ratios; with --json, one"
        " JSON object with `ratios`, `conditions` and `rows`.",
    )
    benchmarks = parser.add_subparsers(required=True, metavar="BENCHMARK")
    _add_helm_parser(benchmarks)
    _add_tree_parser(benchmarks)
    _add_offload_parser(benchmarks)
    _add_plan_parser(benchmarks)
    _add_gpu_parser(benchmarks)


def print_report(report: Report, *, as_json: bool) -> None:
    """Print a report as every benchmark does: on stdout, whose last line is the JSON object."""
    print(report.to_json() if as_json else report.to_text(terminal_width()), flush=True)


def _add_helm_parser(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_parser(
        benchmarks,
        "helm",
        shape="opt-125m",
        help="helm-run with our client and runner, and with HELM's HuggingFaceClient",
        description="Run the same HELM suites, on a checkpoint of random weights, through HELM's"
        " HuggingFaceClient and through ours. Progress is reported on stderr.",
    )
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


def _add_tree_parser(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_parser(
        benchmarks,
        "tree",
        shape="tiny",
        help="time and memory of many requests: linear in unique tokens, and flat",
        description="Arrange ever more prompts as prefix trees, and compute ever more requests with"
        " a checkpoint of random weights. Progress is reported on stderr.",
    )
    add = parser.add_argument
    add("--arranged", nargs="+", type=at_least(1), default=[10_000, 100_000], metavar="N")
    add("--computed", nargs="+", type=at_least(1), default=[1000, 2500, 5000, 10_000], metavar="N")
    parser.set_defaults(run=run_bench_tree)


def _add_offload_parser(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _add_parser(
        benchmarks,
        "offload",
        shape="opt-1.3b",
        help="all layers on disk: ours beside transformers in memory and accelerate on disk",
        description="Generate with a checkpoint of random weights whose layers are on disk: ours,"
        " accelerate's disk offload, and transformers with all weights in memory; and what ours"
        " reaches of the machine's rates. Takes an hour. Progress is reported on stderr.",
    )
    add = parser.add_argument
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME", help="to run")
    add("--peers", nargs="+", choices=PEER_SYSTEMS, default=list(PEER_SYSTEMS), metavar="NAME")
    add("--peer-batches", nargs="+", type=at_least(1), default=[8, 16, 32], metavar="N")
    add(
        "--prefill-heavy",
        type=_workload,
        default="512/32",
        metavar="P/N",
        help="prompt tokens and new tokens of a request",
    )
    add("--decode-heavy", type=_workload, default="32/128", metavar="P/N", help="likewise")
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
        type=_size,
        default="2GB",
        metavar="SIZE",
        help="of ours and accelerate, decode-heavy, with the page cache",
    )
    add("--micro-batches", nargs="+", type=at_least(1), default=[1, 2, 4, 8], metavar="N")
    add("--micro-batch-size", type=at_least(1), default=8, metavar="N")
    add("--rounds", type=at_least(1), default=1, metavar="N", help="times everything is timed")
    parser.set_defaults(run=run_bench_offload)


def _add_plan_parser(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benchmarks.add_parser(
        "plan",
        help="the planner's predictions beside what was measured",
        description="Predict the tables of the FlexGen paper with a T4's profile; measure policies"
        " of all kinds on this machine, beside what is predicted of them; and measure the planned"
        " policy among many others. Progress is reported on stderr.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--json", action="store_true", help="print the report as one JSON object")
    add("--stages", nargs="+", choices=PLAN_STAGES, default=list(PLAN_STAGES), metavar="NAME")
    add("--hardware", metavar="FILE", help="profile of this machine, if not measured all along")
    add("--rounds", type=at_least(1), default=1, metavar="N", help="times everything is timed")
    add("--part", type=_part, default=1.0, metavar="P", help="of the requests, up to 1")
    add("--data", type=Path, default=DATA, metavar="DIR", help="where OPT's tokenizer is")
    add("--work-dir", type=Path, default=WORK_DIR, metavar="DIR", help="stores and logs")
    parser.set_defaults(run=run_bench_plan)


def _add_gpu_parser(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benchmarks.add_parser(
        "gpu",
        help="a GPU with its memory capped: ours beside upstream FlexGen and accelerate",
        description="Generate with random weights of OPT's sizes under a cap on the GPU's memory:"
        " ours, upstream FlexGen with its published policies, and accelerate; then the paper's"
        " seven HELM sub-scenarios with fewer requests, as they are and padded. What does not come"
        " to its turn in time is reported without figures. Progress is reported on stderr.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--json", action="store_true", help="print the report as one JSON object")
    add("--stages", nargs="+", choices=GPU_STAGES, default=list(GPU_STAGES), metavar="NAME")
    add("--models", nargs="+", choices=SIZES, default=["30b", "6.7b"], metavar="SIZE", help="OPT's")
    add("--peers", nargs="*", choices=GPU_PEERS, default=list(GPU_PEERS), metavar="NAME")
    add("--compressions", nargs="+", default=["w4-kv4", "w4"], metavar="LABEL", help="of ours")
    add("--workload", type=_workload, default="512/32", metavar="P/N", help="prompt/new tokens")
    add("--requests", type=at_least(1), default=128, metavar="N", help="of ours, in each trial")
    add("--helm-model", choices=SIZES, default="30b", metavar="SIZE", help="of the sub-scenarios")
    add("--hardware", metavar="FILE", help="profile of this machine, if not measured first")
    add("--helm-share", type=float, default=0.02, metavar="PART", help="of the paper's requests")
    add("--device-memory", type=_size, default="16GB", metavar="SIZE", help="cap of the GPU")
    add("--minutes", type=float, default=9.0, metavar="N", help="time in all")
    add("--device", default="cuda", help="cuda, or cpu to try the benchmark out")
    add("--work-dir", type=Path, default=WORK_DIR, metavar="DIR", help="stores and logs")
    parser.set_defaults(run=run_bench_gpu)


def _add_parser(
    benchmarks: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    *,
    shape: str,
    help: str,  # noqa: A002 - as argparse calls it
    description: str,
) -> argparse.ArgumentParser:
    """Add a benchmark with the options that all have: `shape` is the default of one of them."""
    parser = benchmarks.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--json", action="store_true", help="print the report as one JSON object")
    add("--shape", choices=SHAPES, default=shape, help="of the checkpoint")
    add("--data", type=Path, default=DATA, metavar="DIR", help="tokenizer and scenario data")
    add("--work-dir", type=Path, default=WORK_DIR, metavar="DIR", help="checkpoints, results, logs")
    return parser


def _checkpoint(args: argparse.Namespace, *, dtype: str = "float16") -> Path:
    """Directory of the random weights that a benchmark computes with."""
    return random_checkpoint(
        SHAPES[args.shape],
        tokenizer=args.data / TOKENIZER,
        parent=args.work_dir.absolute(),
        dtype=dtype,
    )


def run_bench_tree(args: argparse.Namespace) -> int:
    """Carry out ``bench tree``."""
    from flexgen_helm.bench.conditions import machine_conditions
    from flexgen_helm.bench.tree import run_tree_benchmark

    require_data(args.data, [])
    checkpoint = _checkpoint(args)
    report = run_tree_benchmark(
        checkpoint=checkpoint,
        arranged=args.arranged,
        computed=args.computed,
        conditions={
            **machine_conditions(datetime.now(timezone.utc)),
            "checkpoint": checkpoint.name,
        },
        announce=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print_report(report, as_json=args.json)
    return 0


def run_bench_offload(args: argparse.Namespace) -> int:
    """Carry out ``bench offload``."""
    from flexgen_helm.bench.conditions import machine_conditions, version
    from flexgen_helm.bench.offload import Plan, Session, run_offload_benchmark

    require_data(args.data, [])
    if ACCELERATE in args.peers and version(ACCELERATE) is None:
        raise BenchmarkError(
            f"{ACCELERATE} is not installed: run pip install 'flexgen_helm[bench]', or leave it out"
            f" with --peers {TRANSFORMERS}"
        )
    plan = Plan(
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
    checkpoint = _checkpoint(args, dtype="bfloat16")
    conditions = {
        **machine_conditions(datetime.now(timezone.utc)),
        "accelerate": version(ACCELERATE),
        "checkpoint": checkpoint.name,
    }
    session = Session(
        Bench(checkpoint=checkpoint, directory=args.work_dir.absolute() / "offload"),
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    report = run_offload_benchmark(plan, session, conditions)
    print_report(report, as_json=args.json)
    return 0


def run_bench_plan(args: argparse.Namespace) -> int:
    """Carry out ``bench plan``."""
    from flexgen_helm.bench import plan
    from flexgen_helm.bench.conditions import machine_conditions
    from flexgen_helm.bench.report import Report

    rows: list[Row] = []
    if plan.PAPER in args.stages:
        rows += [*plan.paper_rows(), *plan.paper_helm_rows()]
    if {plan.MACHINE, plan.SWEEP} & set(args.stages):
        require_data(args.data, [])
        machine = plan.Machine(
            hardware=hardware_named(args.hardware) if args.hardware else None,
            directory=args.work_dir.absolute() / "plan",
            tokenizer=args.data / TOKENIZER,
            rounds=args.rounds,
            part=args.part,
        )
        for row in _measured_rows(args.stages, machine):
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    report = Report(
        ratios=plan.ratios(rows),
        conditions=machine_conditions(datetime.now(timezone.utc)),
        rows=rows,
    )
    print_report(report, as_json=args.json)
    return 0


def run_bench_gpu(args: argparse.Namespace) -> int:
    """Carry out ``bench gpu``."""
    import torch

    from flexgen_helm.bench import gpu
    from flexgen_helm.bench.conditions import machine_conditions, version
    from flexgen_helm.specs.catalog import EMBEDDED_CHECKPOINT

    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            f"PyTorch {torch.__version__} finds no GPU here: run this on a machine with one, or try"
            " it out with --device cpu --peers accelerate --models 125m --helm-model 125m"
        )
    for peer in args.peers:
        if version(peer) is None:
            raise BenchmarkError(
                f"{peer} is not installed: run pip install {peer}, or leave it out of --peers"
            )
    plan = gpu.Plan(
        stages=args.stages,
        models=args.models,
        peers=args.peers,
        compressions=args.compressions,
        workload=args.workload,
        batch=args.requests,
        helm_model=args.helm_model,
        helm_share=args.helm_share,
        cap_bytes=args.device_memory,
    )
    session = gpu.Session(
        EMBEDDED_CHECKPOINT,
        args.work_dir.absolute() / "gpu",
        device=args.device,
        limit_s=60 * args.minutes,
        announce=lambda text: print(text, file=sys.stderr, flush=True),
    )
    conditions = {
        **machine_conditions(datetime.now(timezone.utc)),
        **{peer: version(peer) for peer in args.peers},
    }
    hardware = hardware_named(args.hardware) if args.hardware else session.calibrate()
    report = gpu.run_gpu_benchmark(plan, session, hardware, conditions)
    print_report(report, as_json=args.json)
    return 0


def _measured_rows(stages: Sequence[str], machine: Machine) -> Iterator[Row]:
    from flexgen_helm.bench import plan

    if plan.MACHINE in stages:
        yield from plan.machine_rows(machine)
    if plan.SWEEP in stages:
        for number, configuration in enumerate(plan.SWEPT, start=1):
            yield from plan.sweep_rows(configuration, machine, number=100 * number)


def run_bench_helm(args: argparse.Namespace) -> int:
    """Carry out ``bench helm``."""
    from flexgen_helm.bench.conditions import machine_conditions
    from flexgen_helm.bench.helm import Plan, Session, run_helm_benchmark
    from flexgen_helm.bench.helm_run import Site, Size

    suites = [SUITES[name] for name in args.suites]
    require_data(args.data, suites)
    plan = Plan(
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
        checkpoint=_checkpoint(args),
        positions=SHAPES[args.shape].max_position_embeddings,
        directory=_new_directory(args.work_dir.absolute() / f"helm-{now:%Y%m%dT%H%M%S}"),
    )
    about = {"checkpoint": site.checkpoint.name, "data": str(args.data)}
    print(f"HELM's output and logs are in {site.directory}", file=sys.stderr)
    report = run_helm_benchmark(
        plan, Session(site, _announce), {**machine_conditions(now), **about}
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
    print(
        f"{row.suite}, {row.stage}: {row.client}, {row.dtype}, {row.threads} threads,"
        f" {row.requests} requests: {row.wall_s:.1f} s, {row.execution_s:.1f} s of it execution",
        file=sys.stderr,
        flush=True,
    )


def _part(text: str) -> float:
    """Read a part of a whole, up to all of it."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 0.5, above 0 and up to 1")
    return value


def _workload(text: str) -> Workload:
    """Read ``512/32``: prompt tokens and new tokens."""
    try:
        workload = Workload(*map(int, text.split("/")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 512/32") from error
    if workload.prompt_len < 1 or workload.new_tokens < 2:
        raise argparse.ArgumentTypeError(f"{text!r} has fewer than 1 prompt or 2 new tokens")
    return workload


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: {error}") from error
