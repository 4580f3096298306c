"""Tables as text, for terminals and for Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from flexgen_helm.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flexgen_helm.tables.columns import Column

MISSING = "-"


def text_table(table: pd.DataFrame, columns: Sequence[Column]) -> str:
    """Aligned columns under a header; numbers to the right."""
    header, *rows = cells(table, columns)
    widths = [max(map(len, texts)) for texts in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    lines = [_padded(row, widths, columns) for row in (header, rule, *rows)]
    return "\n".join("  ".join(line).rstrip() for line in lines)


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
    by_column = [[_cell(value, column) for value in table[column.name]] for column in columns]
    header = [_header(column) for column in columns]
    return [header, *(list(row) for row in zip(*by_column, strict=True))]


def _header(column: Column) -> str:
    """The name, with its unit unless it ends in it already."""
    unit = column.unit
    named = not unit or f"_{column.name}".endswith(f"_{unit.replace('/', '_per_')}")
    return column.name if named else f"{column.name} ({unit})"


def _cell(value: Any, column: Column) -> str:
    if pd.isna(value):
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
