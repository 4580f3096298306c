"""Entry point of ``flexgen-helm``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from flexgen_helm import __version__
from flexgen_helm.cli.bench import add_bench_parser
from flexgen_helm.cli.calibrate import add_calibrate_parser
from flexgen_helm.cli.convert import add_convert_parser
from flexgen_helm.cli.demo import add_demo_parser
from flexgen_helm.cli.plan import add_plan_parser
from flexgen_helm.cli.register import add_register_parser
from flexgen_helm.cli.reproduce import add_reproduce_parser
from flexgen_helm.cli.run import add_run_parser
from flexgen_helm.cli.stage import add_stage_parser
from flexgen_helm.cli.sweep import add_sweep_parser
from flexgen_helm.cli.tables import add_compare_parser, add_tables_parser
from flexgen_helm.errors import FlexGenError
from flexgen_helm.notices import one_line_warnings

GO_ON = frozenset({"demo", "run", "sweep", "reproduce", "convert"})
"""Commands that keep what they have done when they are interrupted, and go on from there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error raised on purpose is one line on stderr and exit status 2.

    A warning is one line, too.
    """
    args = build_parser().parse_args(argv)
    try:
        with one_line_warnings():
            status: int = args.run(args)
        sys.stdout.flush()
    except FlexGenError as error:
        print(f"flexgen-helm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "; what was computed is kept, and the same command goes on from there"
        print(f"flexgen-helm: interrupted{kept * (args.command in GO_ON)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as of `| head`; nobody wants the rest, nor hear of it at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; parsing sets `run`, the function that carries one out."""
    parser = argparse.ArgumentParser(
        prog="flexgen-helm",
        description="Evaluate OPT models with HELM, in large batches and compressed.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_demo_parser(subparsers)
    add_run_parser(subparsers)
    add_sweep_parser(subparsers)
    add_reproduce_parser(subparsers)
    add_stage_parser(subparsers)
    add_tables_parser(subparsers)
    add_compare_parser(subparsers)
    add_register_parser(subparsers)
    add_convert_parser(subparsers)
    add_calibrate_parser(subparsers)
    add_plan_parser(subparsers)
    add_bench_parser(subparsers)
    return parser
