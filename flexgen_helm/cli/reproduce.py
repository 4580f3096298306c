"""`flexgen-helm reproduce`: the FlexGen paper's HELM table, planned, run and set beside it."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from flexgen_helm.adapter.limits import MEMORY_VARIABLES
from flexgen_helm.cli.arguments import at_least
from flexgen_helm.cli.convert import make_dummy
from flexgen_helm.cli.dry_run import add_dry_run, print_runs
from flexgen_helm.cli.entries import read_entries
from flexgen_helm.cli.helm_process import add_helm_options, suite_runs
from flexgen_helm.cli.plan import hardware_named, read_suite, spec_named
from flexgen_helm.cli.run import apply_limits
from flexgen_helm.cli.sweep import deployments
from flexgen_helm.cli.terminal import terminal_width
from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.files import write_text_atomically
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.deployment import PREFIX
from flexgen_helm.specs.shipped import flexgen_paper, scenarios_dir
from flexgen_helm.specs.workload import Workload

if TYPE_CHECKING:
    from flexgen_helm.planner.plan import Plan

SUITES = {"paper-7": "paper_7", "paper-7-offline": "paper_7_offline"}
"""What can be reproduced, and the names of its files."""

_INSTANCES = re.compile(r"max_eval_instances=(\d+)")


def add_reproduce_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parsers of `flexgen-helm`."""
    parser = subparsers.add_parser(
        "reproduce",
        help="rerun the FlexGen paper's seven HELM sub-scenarios, and set our times beside its",
        description="Plan and run the sub-scenarios, and print the minutes they took beside those"
        " of the paper. Run again, it does only what is missing.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("suite", choices=SUITES, help="paper-7-offline leaves out what must be downloaded")
    add("--model", default="facebook/opt-iml-30b", help="hub id, short name or directory")
    add("--compression", metavar="LABEL", default="w4-kv4", help="none is what the paper ran")
    add("--hardware", metavar="NAME", help="machine to predict the times of (this, if calibrated)")
    add("--dummy", action="store_true", help="random weights of the model's shape: speed alone")
    add("--tokenizer", type=Path, metavar="DIR", help="of OPT, for --dummy")
    add("-m", "--max-eval-instances", type=at_least(1), metavar="N", help="fewer than the paper's")
    add_helm_options(parser)
    add_dry_run(parser)
    parser.set_defaults(run=run_reproduce)


def run_reproduce(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from flexgen_helm.tables.collect import efficiency
    from flexgen_helm.tables.plans import plan_text
    from flexgen_helm.tables.render import text_table
    from flexgen_helm.tables.reproduction import NOT_SHOWN, REPRODUCTION, reproduction
    from flexgen_helm.tables.write import write_csv, write_parquet

    apply_limits(args)
    suite = SUITES[args.suite]
    conf = scenarios_dir() / f"{suite}.conf"
    full = read_entries(conf)
    entries = [limited(entry, args.max_eval_instances) for entry in full]
    plan = plan_for(args, shortened(read_suite(conf), full, entries))
    if plan is not None:
        print(plan_text(plan, terminal_width()), end="\n\n")
    checkpoint = _dummy(args) if args.dummy else args.model
    tables = args.output_path / "tables" / suite
    [deployment] = deployments(checkpoint, [args.compression])
    arguments = [
        *("--run-entries", *entries),
        *("--models-to-run", deployment),
        *("--max-eval-instances", "1000"),  # every entry has its own
    ]
    if args.dry_run:
        print_runs(suite, arguments, args, tables)
        return 0
    start_s = perf_counter()
    with suite_runs(suite, arguments, args) as runs:
        took_s = perf_counter() - start_s
        costs = efficiency(runs)
        ours = costs[costs["deployment"] == deployment]
        table = reproduction(ours, entries, flexgen_paper()["helm"]["rows"], plan)
        shown = [column for column in REPRODUCTION if column.name not in NOT_SHOWN]
        print(f"\n{text_table(table, shown, terminal_width())}\n")
        for policy in table["policy"].dropna().unique():
            print(f"policy: {policy}")
        print(f"helm-run took {took_s / 60:.3g} minutes, for what was missing, metrics included")
        written = [write_parquet(table, tables / "reproduction.parquet")]
        written += [write_csv(table, tables / "reproduction.csv"), tables / "conditions.json"]
        conditions = _conditions(args, deployment, entries, plan)
        write_text_atomically(written[-1], json.dumps(conditions, indent=2))
        for path in written:
            print(f"wrote {path}")
    return 0


def limited(entry: str, most: int | None) -> str:
    """Return a run entry with at most so many instances."""
    if most is None:
        return entry
    return _INSTANCES.sub(lambda m: f"max_eval_instances={min(most, int(m[1]))}", entry)


def shortened(workload: Workload, full: Sequence[str], entries: Sequence[str]) -> Workload:
    """Return the lengths of as many requests as some entries ask for.

    Args:
        workload: lengths of all requests.
        full: the entries that ask for these, in the same order.
        entries: the same with fewer instances.
    """
    return replace(
        workload,
        scenarios=tuple(
            replace(
                lengths,
                num_requests=max(1, lengths.num_requests * _instances(entry) // _instances(all_)),
            )
            for lengths, all_, entry in zip(workload, full, entries, strict=True)
        ),
    )


def plan_for(args: argparse.Namespace, workload: Workload) -> Plan | None:
    """Plan for the machine that is asked for; `None` where there is no telling its rates.

    Raises:
        InvalidSettingError: a machine is named for which there can be no plan.
    """
    from flexgen_helm.planner.plan import plan

    try:
        return plan(
            spec_named(args.model.removeprefix(PREFIX)),
            [Compression.parse(args.compression)],
            hardware_named(args.hardware),
            workload,
            MemoryBudget(device=args.device_memory, host=args.host_memory, disk=args.disk_memory),
        )
    except InvalidSettingError as error:
        if args.hardware is not None:
            raise
        print(f"no prediction: {error}\n")
        return None


def _instances(entry: str) -> int:
    match = _INSTANCES.search(entry)
    assert match is not None, "each entry says how many instances it has"
    return int(match[1])


def _conditions(
    args: argparse.Namespace, deployment: str, entries: Sequence[str], plan: Plan | None
) -> dict[str, Any]:
    from flexgen_helm.bench.conditions import machine_conditions

    return {
        **machine_conditions(datetime.now(timezone.utc)),
        "deployment": deployment,
        "memory": {tier: getattr(args, f"{tier}_memory") for tier in MEMORY_VARIABLES},
        "entries": list(entries),
        "predicted_for": args.hardware,
        "plan": plan.to_dict() if plan else None,
    }


def _dummy(args: argparse.Namespace) -> str:
    """Make a dummy of the model's shape; in a dry run the model itself stands in for it."""
    from flexgen_helm.specs.opt_sizes import size_of

    size = size_of(args.model)
    directory = (args.output_path / "checkpoints" / f"dummy-opt-{size}").resolve()
    if args.dry_run:
        return str(directory) if (directory / "config.json").is_file() else args.model
    return str(make_dummy(f"opt-{size}", args.tokenizer, directory, option="--output-path"))
