"""Pictures of a comparison: what a setting costs in score, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from flexgen_helm.files import write_atomically
from flexgen_helm.tables.columns import UNQUANTIZED_BITS
from flexgen_helm.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")

STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.3,
    "savefig.dpi": 150,
    "svg.hashsalt": "flexgen_helm",  # or names within the file would be random
}

PANEL_WIDTH, PANEL_HEIGHT = 4.6, 3.6
"""Inches."""

TASKS_PER_ROW = 3

CLOSE = 0.06
"""Of the range of a picture's points: what is nearer has one label in common."""

MODEL_COLUMNS = ("model", "dtype", "suite")
"""What tells settings apart beside their compression."""

COMPUTING, DISK, LINK = "#4c72b0", "#dd8452", "#55a868"


class _Axis(NamedTuple):
    """What scores are plotted against."""

    column: str
    label: str
    formatted: Callable[[float, int], str] | None
    """Labels of its ticks, from their places and numbers."""


def _as_bytes(size: float, _: int) -> str:
    return format_bytes(size)


PARETO = (
    _Axis("weight_bytes", "weights", _as_bytes),
    _Axis("cache_bytes_per_token", "KV cache of a token", _as_bytes),
    _Axis("throughput", "throughput, tokens/s", None),
)


def pareto(overall: pd.DataFrame) -> Figure | None:
    """Return score against bytes and against throughput, a point for each setting.

    Args:
        overall: rows with the columns `columns.OVERALL`; without any there is nothing to show.
    """
    if overall.empty:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(PANEL_WIDTH * len(PARETO), PANEL_HEIGHT), layout="constrained")
        panels = figure.subplots(1, len(PARETO), sharey=True, squeeze=False)[0]
        for panel, axis in zip(panels, PARETO, strict=True):
            for model, rows in overall.groupby("model", sort=False):
                _scores_against(panel, axis, rows.dropna(subset=[axis.column]), str(model))
            panel.set_xlabel(axis.label)
            if axis.formatted is not None:
                panel.xaxis.set_major_formatter(FuncFormatter(axis.formatted))
                panel.tick_params(axis="x", rotation=30)
            panel.margins(x=0.18, y=0.15)
        panels[0].set_ylabel("score, mean over tasks")
        if overall["model"].nunique() > 1:
            panels[0].legend(fontsize="small")
    return figure


def differences(settings: pd.DataFrame) -> Figure | None:
    """Return each setting's difference to its reference, with its interval, a panel for each task.

    Args:
        settings: rows with the columns `columns.COMPARISON`; without any interval there is nothing
            to show.
    """
    rows = settings[settings["difference_low"].notna()]
    if rows.empty:
        return None
    tasks = list(dict.fromkeys(rows["task"]))
    rows = rows.assign(label=setting_labels(rows))
    labels = list(dict.fromkeys(rows["label"]))
    across = max(1, min(len(tasks), TASKS_PER_ROW))
    down = max(1, ceil(len(tasks) / across))
    height = 1.1 + 0.32 * len(labels)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(PANEL_WIDTH * across, height * down), layout="constrained")
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
        for panel, task in zip(panels, tasks, strict=False):
            of_task = rows[rows["task"] == task]
            places = [labels.index(label) for label in of_task["label"]]
            panel.errorbar(
                of_task["difference"].to_numpy(),
                places,
                xerr=_whiskers(of_task),
                fmt="o",
                color=COMPUTING,
                capsize=3,
            )
            panel.axvline(0, color="black", linewidth=0.8)
            panel.set_title(_wrapped(task), fontsize="small")
            panel.set_yticks(range(len(labels)), labels)
            panel.set_ylim(len(labels) - 0.5, -0.5)
            panel.tick_params(axis="x", labelbottom=True)  # what is below may be empty
        for panel in panels[len(tasks) :]:
            panel.set_visible(False)
        figure.supxlabel("difference of the score, with 95 % interval", fontsize="medium")
    return figure


def times(costs: pd.DataFrame) -> Figure | None:
    """Return where the time of each run went: computing, or waiting for the disk or for copies.

    Args:
        costs: rows with the columns `columns.EFFICIENCY`; without any time there is nothing to
            show.
    """
    rows = costs[costs["request_s"].notna()]
    if rows.empty:
        return None
    bits = rows[["weight_bits", "cache_bits"]].fillna(UNQUANTIZED_BITS)
    by_setting = bits.assign(task=rows["task"]).sort_values(
        ["task", "weight_bits", "cache_bits"], ascending=[True, False, False], kind="stable"
    )
    rows = rows.loc[by_setting.index]
    waits = {
        "waiting for the disk": (rows["disk_wait_s"].fillna(0), DISK),
        "waiting for copies to the device": (rows["link_wait_s"].fillna(0), LINK),
    }
    computing = rows["request_s"] - sum(wait for wait, _ in waits.values())
    parts = {"computing": (computing.clip(lower=0), COMPUTING), **waits}
    labels = [
        f"{task}, {label}" for task, label in zip(rows["task"], setting_labels(rows), strict=True)
    ]
    with mpl.rc_context(STYLE):
        height = 1.4 + 0.28 * len(rows)
        figure = Figure(figsize=(2.2 * PANEL_WIDTH, height), layout="constrained")
        panel = figure.subplots()
        begin = pd.Series(0.0, index=rows.index)
        for name, (seconds, color) in parts.items():
            panel.barh(range(len(rows)), seconds, left=begin, label=name, color=color)
            begin = begin + seconds
        panel.set_yticks(range(len(rows)), labels, fontsize="small")
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_xlabel("seconds of prefill and decode")
        panel.grid(visible=False, axis="y")
        figure.legend(loc="outside upper center", ncols=len(parts), fontsize="small")
    return figure


def write_plots(figures: Mapping[str, Figure], out: Path) -> list[Path]:
    """Write figures as PNG and SVG; return the files."""
    written = []
    for name, figure in figures.items():
        for kind in FORMATS:
            path = out / f"{name}.{kind}"
            write_atomically(path, partial(save, figure, kind=kind))
            written.append(path)
    return written


def save(figure: Figure, to: Any, *, kind: str) -> None:
    """Write a figure to a file; the same figure gives the same bytes."""
    with mpl.rc_context(STYLE):
        figure.savefig(to, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _scores_against(panel: Axes, axis: _Axis, rows: pd.DataFrame, model: str) -> None:
    x, y = (rows[name].to_numpy(dtype=float) for name in (axis.column, "score"))
    panel.errorbar(x, y, yerr=_whiskers(rows), fmt="o", capsize=3, label=model)
    spans = (float(np.ptp(x)) or 1.0, float(np.ptp(y)) or 1.0) if len(rows) else (1.0, 1.0)
    for place, labels in _joined(zip(x, y, strict=True), setting_labels(rows), spans):
        text = ", ".join(labels)
        panel.annotate(text, place, (4, 4), textcoords="offset points", fontsize="small")


def _joined(
    places: Iterable[tuple[float, float]], labels: Iterable[str], spans: tuple[float, float]
) -> list[tuple[tuple[float, float], list[str]]]:
    """Join the labels of places that are too close together for one each."""
    joined: list[tuple[tuple[float, float], list[str]]] = []
    for place, label in zip(places, labels, strict=True):
        for other, those in joined:
            if all(
                abs(a - b) < CLOSE * span for a, b, span in zip(place, other, spans, strict=True)
            ):
                those.append(label)
                break
        else:
            joined.append((place, [label]))
    return joined


def _whiskers(rows: pd.DataFrame) -> NDArray[np.float64]:
    """How far intervals reach below and above [2, n]; not at all where there is none."""
    low = (rows["difference"] - rows["difference_low"]).fillna(0).clip(lower=0)
    high = (rows["difference_high"] - rows["difference"]).fillna(0).clip(lower=0)
    return np.array([low, high], dtype=float)


def setting_labels(rows: pd.DataFrame) -> Sequence[str]:
    """What settings are called: by their compression, and by what else there are several of."""
    several = [name for name in MODEL_COLUMNS if rows[name].nunique() > 1]
    named = rows[["compression", *several]].fillna("?")
    return [", ".join(map(str, row)) for row in named.itertuples(index=False)]


def _wrapped(task: str, width: int = 44) -> str:
    """Break a run's name at its arguments."""
    lines = [""]
    for part in task.replace(",", ",\0").replace(":", ":\0").split("\0"):
        if len(lines[-1]) + len(part) > width and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
