"""``flexgen-helm tables`` and ``flexgen-helm compare``: read runs, print and write tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexgen_helm.cli.terminal import terminal_width

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import pandas as pd

    from flexgen_helm.tables.columns import Column
    from flexgen_helm.tables.compare import Comparison

RUNS_HELP = "helm-run's output directory, its runs folder, a suite or one run"

COST_NAMES = (
    "suite",
    "task",
    "model",
    "compression",
    "dtype",
    "requests",
    "generated_tokens",
    "effective_batch",
    "throughput",
    "peak_memory_bytes",
)
"""Columns of the efficiency table that fit a terminal."""

COMPARISON_NAMES = (
    "suite",
    "task",
    "model",
    "compression",
    "metric",
    "n",
    "score",
    "difference",
    "difference_low",
    "difference_high",
    "p_adjusted",
    "changed_answers",
    "throughput",
    "throughput_ratio",
    "weight_bytes",
    "cache_bytes_per_token",
)
"""Columns of the comparison that fit a terminal."""


def add_tables_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register ``tables RUNS_DIR --out DIR``."""
    parser = subparsers.add_parser(
        "tables",
        help="write scores and costs of HELM runs as Parquet and CSV",
        description="Write the tables scenario_metrics and efficiency of all complete runs as"
        " Parquet and CSV, and print what the runs cost.",
    )
    parser.add_argument("runs", metavar="RUNS_DIR", type=Path, help=RUNS_HELP)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="directory for the four files"
    )
    parser.set_defaults(run=run_tables)


def add_compare_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register ``compare RUNS_DIR [--metric NAME] [--reference LABEL] [--out DIR] ...``."""
    parser = subparsers.add_parser(
        "compare",
        help="compare scores and answers across compression settings",
        description="Print each run's score beside that of the reference setting of the same model"
        " and task: difference is score minus reference, with a 95 % interval and a p-value"
        " adjusted for the number of rows; throughput_ratio is throughput over that of the"
        " reference.",
    )
    parser.add_argument("runs", metavar="RUNS_DIR", type=Path, help=RUNS_HELP)
    parser.add_argument(
        "--metric", metavar="NAME", help="HELM metric (default: the main one of each scenario)"
    )
    parser.add_argument(
        "--reference",
        metavar="LABEL",
        default="none",
        help="compression setting to compare with (default: none)",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="also write the full comparison as CSV"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="also write all tables as Parquet and CSV, plots as PNG and SVG, and an HTML report",
    )
    parser.set_defaults(run=run_compare)


def run_tables(args: argparse.Namespace) -> int:
    """Write the tables, print the costs and the files."""
    import pandas as pd  # after parsing: --help need not wait for pandas

    from flexgen_helm.tables.columns import EFFICIENCY
    from flexgen_helm.tables.render import text_table
    from flexgen_helm.tables.write import write_tables

    written = write_tables(args.runs, args.out)
    costs = pd.read_parquet(args.out / "efficiency.parquet")
    print(text_table(costs, _shown(EFFICIENCY, COST_NAMES, costs), terminal_width()))
    print()
    for path in written:
        print(f"wrote {path}")
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """Print the comparison, and write what is asked for."""
    from flexgen_helm.tables.write import write_csv

    comparison = print_comparison(
        args.runs, metric=args.metric, reference=args.reference, markdown=args.markdown
    )
    if args.csv is not None:
        write_csv(comparison.settings, args.csv)
    if args.out is not None:
        models = ", ".join(sorted(comparison.settings["model"].unique()))
        print()
        for path in write_all(comparison, args.out, f"Compression settings of {models}"):
            print(f"wrote {path}")
    return 0


def print_comparison(
    runs: Path,
    *,
    metric: str | None = None,
    reference: str = "none",
    deployments: Sequence[str] | None = None,
    markdown: bool = False,
) -> Comparison:
    """Print the comparison of the runs in a directory, and return all of it; see `compare`."""
    from flexgen_helm.tables.columns import COMPARISON, OVERALL
    from flexgen_helm.tables.compare import compare
    from flexgen_helm.tables.render import markdown_table, text_table

    comparison = compare(runs, metric=metric, reference=reference, deployments=deployments)
    render = markdown_table if markdown else partial(text_table, width=terminal_width())
    settings, overall, _ = comparison
    print(render(settings, _shown(COMPARISON, COMPARISON_NAMES, settings)))
    if overall["tasks"].gt(1).any():
        names = [column.name for column in OVERALL]
        print()
        print(render(overall, _shown(OVERALL, names, overall)))
    return comparison


def write_all(comparison: Comparison, out: Path, title: str) -> list[Path]:
    """Write the tables, plots and the report of a comparison; return the files."""
    from flexgen_helm.tables.report import write_report
    from flexgen_helm.tables.write import write_comparison

    return [*write_comparison(comparison, out), *write_report(comparison, out, title=title)]


def _shown(columns: Sequence[Column], names: Sequence[str], table: pd.DataFrame) -> list[Column]:
    """The named columns; the suite only where there are several."""
    one_suite = table["suite"].nunique() == 1
    return [
        column
        for column in columns
        if column.name in names and not (column.name == "suite" and one_suite)
    ]
