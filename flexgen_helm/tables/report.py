"""A comparison as one HTML file that needs nothing else: tables, pictures and how to read them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from flexgen_helm.errors import TablesError
from flexgen_helm.files import write_text_atomically
from flexgen_helm.tables import plots
from flexgen_helm.tables.columns import COMPARISON, EFFICIENCY, OVERALL, Column
from flexgen_helm.tables.render import cells, is_number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from flexgen_helm.tables.compare import Comparison

TEMPLATE = "report.html.j2"

COST_NAMES = (
    "task",
    "model",
    "compression",
    "requests",
    "prompt_tokens",
    "unique_ratio",
    "generated_tokens",
    "effective_batch",
    "prefill_s",
    "decode_s",
    "disk_wait_s",
    "predicted_prefill_s",
    "predicted_decode_s",
    "peak_memory_bytes",
    "planned_memory_bytes",
)
"""Columns of the efficiency table that a report shows."""

NOT_SHOWN = ("suite", "scenario", "deployment", "reference", "split", "test")
"""Columns of the comparison that a report leaves to the CSV file."""


class _Table:
    """A table as a template wants it."""

    def __init__(self, table: pd.DataFrame, columns: Sequence[Column]) -> None:
        self.header, *self.rows = cells(table, columns)
        self.numeric = [is_number(column) for column in columns]


CAPTIONS = {
    "pareto": "Score against what a setting takes and gives: up and to the left, or for throughput"
    " to the right, is better.",
    "differences": "Differences to the reference setting, with 95 % intervals: those that cross the"
    " line may be none.",
    "times": "Where the time of each run went.",
}
"""Names of the pictures, and what they show."""


def write_report(comparison: Comparison, out: Path, *, title: str) -> list[Path]:
    """Write a report, and its pictures as PNG and SVG; return the files.

    Args:
        comparison: what `compare` returned.
        out: directory for the files; made if it does not exist.
        title: heading of the report.

    Raises:
        TablesError: `out` cannot be written to.
    """
    drawn = {
        "pareto": plots.pareto(comparison.overall),
        "differences": plots.differences(comparison.settings),
        "times": plots.times(comparison.costs),
    }
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    try:
        written = plots.write_plots(figures, out)
        page = out / "report.html"
        write_text_atomically(page, _page(comparison, figures, title))
    except OSError as error:
        raise TablesError(
            f"{str(out)!r} cannot be written to ({error.strerror or error}): name another directory"
        ) from error
    return [*written, page]


def _page(comparison: Comparison, figures: Mapping[str, Figure], title: str) -> str:
    environment = Environment(
        loader=PackageLoader("flexgen_helm.tables", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings, overall, costs = comparison
    return environment.get_template(TEMPLATE).render(
        title=title,
        version=metadata.version("flexgen_helm"),
        models=sorted(settings["model"].unique()),
        suites=sorted(settings["suite"].unique()),
        runs=len(settings),
        overall=_Table(overall, [c for c in OVERALL if c.name != "suite"]),
        settings=_Table(settings, [c for c in COMPARISON if c.name not in NOT_SHOWN]),
        costs=_Table(costs, [c for c in EFFICIENCY if c.name in COST_NAMES]),
        figures={CAPTIONS[name]: _svg(figure) for name, figure in figures.items()},
    )


def _svg(figure: Figure) -> str:
    """A figure as an element of HTML."""
    file = io.BytesIO()
    plots.save(figure, file, kind="svg")
    text = file.getvalue().decode()
    return text[text.index("<svg") :]
