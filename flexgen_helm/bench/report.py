"""What every benchmark reports: ratios, the conditions they hold under, the rows behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from flexgen_helm.tables.columns import Column, frame_of
from flexgen_helm.tables.render import format_number, text_table

Cell = str | float | bool | None
"""A figure, a name, a verdict, or nothing to report. Units are at the end of the names."""

Row = Mapping[str, Cell]
"""One measurement or comparison."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of a benchmark."""

    ratios: Mapping[str, float]
    """What the benchmark is about: name -> how many times better ours is than the other."""

    conditions: Mapping[str, Cell]
    """What else decides the figures: machine, versions, settings."""

    rows: Sequence[Row]
    """The figures the ratios were worked out from; rows of one kind have the same keys."""

    def to_json(self) -> str:
        """Return the report as one line."""
        return json.dumps(asdict(self))

    def to_text(self, width: int | None = None) -> str:
        """Return conditions, a table for each kind of row, and the ratios, for a terminal.

        Args:
            width: characters of a line, for tables.
        """
        tables = [_table(rows, width) for rows in self._kinds()]
        return _joined(_listed(self.conditions), *tables, self._ratios_text())

    def to_short_text(self) -> str:
        """Return the last table and the ratios."""
        return _joined(*(_table(rows) for rows in self._kinds()[-1:]), self._ratios_text())

    def _kinds(self) -> list[list[Row]]:
        return [list(rows) for _, rows in groupby(self.rows, key=tuple)]

    def _ratios_text(self) -> str:
        return _listed({name: f"{format_number(ratio)}x" for name, ratio in self.ratios.items()})


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _listed(values: Mapping[str, Cell]) -> str:
    return "\n".join(f"{name}: {_text(value)}" for name, value in values.items())


def _table(rows: Sequence[Row], width: int | None = None) -> str:
    columns = [_column(name, rows) for name in rows[0]]
    verbal = [{name: _verbal(value) for name, value in row.items()} for row in rows]
    return text_table(frame_of(columns, verbal), columns, width)


def _column(name: str, rows: Sequence[Row]) -> Column:
    cells = [row[name] for row in rows if row[name] is not None]
    numeric = bool(cells) and all(_is_number(cell) for cell in cells)
    unit = "bytes" if name.endswith("_bytes") else ""
    return Column(name, "float64" if numeric else "string", unit, name)


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _verbal(cell: Cell) -> Cell:
    return ("no", "yes")[cell] if isinstance(cell, bool) else cell


def _text(cell: Cell) -> str:
    return "-" if cell is None else str(_verbal(cell))
