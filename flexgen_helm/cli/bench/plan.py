"""`flexgen-helm bench plan`."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from flexgen_helm.bench.plan import STAGES, measured_rows, ratios
from flexgen_helm.bench.suites import TOKENIZER, require_data
from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.bench.options import (
    DATA,
    WORK_DIR,
    Benchmarks,
    add_parser,
    part,
    print_report,
    say,
)
from flexgen_helm.cli.plan import hardware_named

if TYPE_CHECKING:
    from flexgen_helm.bench.report import Row


def add_plan_parser(benchmarks: Benchmarks) -> None:
    """Register ``bench plan``."""
    parser = add_parser(
        benchmarks,
        "plan",
        help="the planner's predictions beside what was measured",
        description="Predict the tables of the FlexGen paper with a T4's profile; measure policies"
        " of all kinds on this machine, beside what is predicted of them; and measure the planned"
        " policy among many others. Progress is reported on stderr.",
    )
    add = parser.add_argument
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME")
    add("--hardware", metavar="FILE", help="profile of this machine, if not measured all along")
    add("--rounds", type=at_least(1), default=1, metavar="N", help="times everything is timed")
    add("--part", type=part, default=1.0, metavar="P", help="of the requests, up to 1")
    add("--data", type=Path, default=DATA, metavar="DIR", help="where OPT's tokenizer is")
    add("--work-dir", type=Path, default=WORK_DIR, metavar="DIR", help="stores and logs")
    parser.set_defaults(run=run_bench_plan)


def run_bench_plan(args: argparse.Namespace) -> int:
    """Carry out ``bench plan``."""
    from flexgen_helm.bench.conditions import machine_conditions
    from flexgen_helm.bench.plan_machine import Machine
    from flexgen_helm.bench.plan_paper import PAPER, paper_helm_rows, paper_rows
    from flexgen_helm.bench.report import Report

    rows: list[Row] = []
    if PAPER in args.stages:
        rows += [*paper_rows(), *paper_helm_rows()]
    if {*args.stages} - {PAPER}:
        require_data(args.data, [])
        machine = Machine(
            hardware=hardware_named(args.hardware) if args.hardware else None,
            directory=args.work_dir.absolute() / "plan",
            tokenizer=args.data / TOKENIZER,
            rounds=args.rounds,
            part=args.part,
        )
        for row in measured_rows(args.stages, machine):
            rows.append(row)
            say(row)
    report = Report(
        ratios=ratios(rows),
        conditions=machine_conditions(datetime.now(timezone.utc)),
        rows=rows,
    )
    print_report(report, as_json=args.json)
    return 0
