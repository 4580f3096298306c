"""Tables as text, for terminals and for Markdown."""

from __future__ import annotations

import re
from itertools import accumulate, takewhile, zip_longest
from typing import TYPE_CHECKING, Any

from flexgen_helm.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from flexgen_helm.tables.columns import Column

MISSING = "-"
GAP = "  "


_JOINT = re.compile(r"(?<=[_:, ])")
"""Where names may be broken into lines."""

Lines = list[str]
"""Of a cell."""


def text_table(table: pd.DataFrame, columns: Sequence[Column], width: int | None = None) -> str:
    """Aligned columns under a header; numbers to the right.

    Args:
        table: what to show.
        columns: of it.
        width: characters of a line. A wider table is shown in parts, each with the first texts, and
            says first what all rows have in common.
    """
    texts = [list(column) for column in zip(*cells(table, columns), strict=True)]
    whole = _aligned([[[cell] for cell in column] for column in texts], columns)
    if width is None or max(map(len, whole.splitlines())) <= width:
        return whole
    return "\n\n".join(_parts(texts, columns, width))


def _parts(texts: Sequence[Lines], columns: Sequence[Column], width: int) -> Iterator[str]:
    num_first = len(list(takewhile(lambda column: not is_number(column), columns)))
    same = [i for i in range(num_first) if len(texts[i]) > 2 and len(set(texts[i][1:])) == 1]
    if same:
        yield "\n".join(f"{texts[i][0]}: {texts[i][1]}" for i in same)
    folded = [_folded_column(column, width // 3) for column in texts]
    widths = [max(len(line) for cell in column for line in cell) + len(GAP) for column in folded]
    first = [i for i in range(num_first) if i not in same]
    left = list(range(num_first, len(columns)))
    if not left:
        first, left = [], first
    while left:
        room = width + len(GAP) - sum(widths[i] for i in first)
        fitting = max(1, sum(used <= room for used in accumulate(widths[i] for i in left)))
        shown, left = [*first, *left[:fitting]], left[fitting:]
        yield _aligned([folded[i] for i in shown], [columns[i] for i in shown])


def _folded_column(column: Lines, width: int) -> list[Lines]:
    """Names in lines of a width; the header is no wider than what is below it, where it can be."""
    header, *body = column
    cells = [_folded(cell, width) for cell in body]
    widest = max((len(line) for cell in cells for line in cell), default=0)
    return [_folded(header, widest), *cells]


def _folded(text: str, width: int) -> Lines:
    lines = [""]
    for piece in _JOINT.split(text):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _aligned(texts: Sequence[Sequence[Lines]], columns: Sequence[Column]) -> str:
    """Header, a rule and rows, given by column."""
    widths = [max(len(line) for cell in column for line in cell) for column in texts]
    header, *rows = zip(*texts, strict=True)
    rule = [["-" * width] for width in widths]
    lines = [
        _padded(line, widths, columns)
        for row in (header, rule, *rows)
        for line in zip_longest(*row, fillvalue="")
    ]
    return "\n".join(GAP.join(line).rstrip() for line in lines)


def markdown_table(table: pd.DataFrame, columns: Sequence[Column]) -> str:
    """GitHub's pipe table; numbers to the right."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in cells(table, columns))
    rule = ["---:" if is_number(column) else "---" for column in columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def format_number(value: float) -> str:
    """Three significant digits, but never fewer than those before the decimal point."""
    if float(value).is_integer() or abs(value) >= 999.5:
        return f"{value:.0f}"
    return f"{value:.3g}"


def cells(table: pd.DataFrame, columns: Sequence[Column]) -> list[list[str]]:
    """Return header and rows as texts."""
    shown = table.astype(object).where(table.notna(), None)
    by_column = [[_cell(value, column) for value in shown[column.name]] for column in columns]
    header = [_header(column) for column in columns]
    return [header, *(list(row) for row in zip(*by_column, strict=True))]


def _header(column: Column) -> str:
    """The name, with its unit unless it ends in it already."""
    unit = column.unit
    named = not unit or f"_{column.name}".endswith(f"_{unit.replace('/', '_per_')}")
    return column.name if named else f"{column.name} ({unit})"


def _cell(value: Any, column: Column) -> str:
    if value is None:
        return MISSING
    if not is_number(column):
        return str(value)
    return format_bytes(value) if column.unit.startswith("bytes") else format_number(value)


def _padded(row: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> list[str]:
    return [
        cell.rjust(width) if is_number(column) else cell.ljust(width)
        for cell, width, column in zip(row, widths, columns, strict=True)
    ]


def is_number(column: Column) -> bool:
    """Whether a column is set to the right."""
    return column.dtype != "string"
