"""What the commands of benchmarks have in common."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from flexgen_helm.bench.checkpoint import SHAPES, random_checkpoint
from flexgen_helm.bench.suites import TOKENIZER
from flexgen_helm.bench.trial import UniformWorkload
from flexgen_helm.cli.terminal import terminal_width
from flexgen_helm.units import parse_bytes

if TYPE_CHECKING:
    from flexgen_helm.bench.report import Report

DATA = Path("../shared/data")
"""Where tokenizer and scenario data are beside the checkout on some machines."""

WORK_DIR = Path("bench_output")

Benchmarks: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What parsers of benchmarks are added to."""


def add_parser(
    benchmarks: Benchmarks,
    name: str,
    *,
    help: str,  # noqa: A002 - as argparse calls it
    description: str,
) -> argparse.ArgumentParser:
    """Add a benchmark with the option that all have."""
    parser = benchmarks.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    return parser


def add_checkpoint_options(parser: argparse.ArgumentParser, *, shape: str) -> None:
    """Add options of benchmarks on a checkpoint of random weights; `shape` is a default."""
    add = parser.add_argument
    add("--shape", choices=SHAPES, default=shape, help="of the checkpoint")
    add("--data", type=Path, default=DATA, metavar="DIR", help="tokenizer and scenario data")
    add("--work-dir", type=Path, default=WORK_DIR, metavar="DIR", help="checkpoints, results, logs")


def checkpoint_of(args: argparse.Namespace, *, dtype: str = "float16") -> Path:
    """Return the directory of the random weights that a benchmark computes with."""
    return random_checkpoint(
        SHAPES[args.shape],
        tokenizer=args.data / TOKENIZER,
        parent=args.work_dir.absolute(),
        dtype=dtype,
    )


def print_report(report: Report, *, as_json: bool) -> None:
    """Print a report as every benchmark does: on stdout, whose last line is the JSON object.

    Those who watch see what matters of it last, on stderr.
    """
    print(report.to_json() if as_json else report.to_text(terminal_width()), flush=True)
    if as_json:
        say(report.to_short_text())


def say(text: object) -> None:
    """Tell what goes on: on stderr, as stdout is for the report."""
    print(text, file=sys.stderr, flush=True)


def workload(text: str) -> UniformWorkload:
    """Read ``512/32``: prompt tokens and new tokens."""
    try:
        asked = UniformWorkload(*map(int, text.split("/")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 512/32") from error
    if asked.prompt_len < 1 or asked.new_tokens < 2:
        raise argparse.ArgumentTypeError(f"{text!r} has fewer than 1 prompt or 2 new tokens")
    return asked


def size(text: str) -> int:
    """Read ``16GB``."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: {error}") from error


def part(text: str) -> float:
    """Read a part of a whole, up to all of it."""
    return _above_nothing(text, 1, "a part such as 0.5, above 0 and up to 1")


def minutes(text: str) -> float:
    """Read a time."""
    return _above_nothing(text, 10**6, "a number of minutes, above 0")


def _above_nothing(text: str, most: float, meaning: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
    return value
