"""Copies between packed rows and sequences side by side.

Shape letters: n packed rows, b slots, t positions of a slot.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

MIN_RUN_LEN = {"cpu": 10, "cuda": 128}
"""Mean length of runs from which they are copied one by one: a copy takes 5 us on a CPU, an indexed
copy half a microsecond a row. To tell a GPU of a copy takes as long, and an indexed one takes it
five times as long."""


class Stretch(NamedTuple):
    """Cells of a slot, one after another, and the rows that belong there."""

    slot: int
    position: int
    """Of the first."""

    rows: NDArray[np.int64]


class _Run(NamedTuple):
    """Consecutive rows at consecutive positions of a slot."""

    rows: slice
    order: slice
    """Of the rows, among those that have a cell."""

    slot: int
    positions: slice


def row_index(rows: ArrayLike, device: torch.device) -> slice | Tensor:
    """Return what picks rows out of a tensor: a slice if they follow one another.

    A slice of a tensor shares its memory, which the rows an index picks do not.
    """
    numbers = np.asarray(rows, dtype=np.int64)
    if len(numbers) and (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return torch.as_tensor(numbers, device=device)


class RowCells:
    """Which rows of packed tensors [n, ...] belong in which cells of tensors [b, t, ...].

    Args:
        rows: rows, in the order of the other two.
        slots: slot of each.
        positions: position in its slot.
        device: where the tensors are.
    """

    def __init__(
        self, rows: ArrayLike, slots: ArrayLike, positions: ArrayLike, device: torch.device
    ) -> None:
        numbers = np.array([rows, slots, positions], dtype=np.int64)
        self._numbers, self._device = numbers, device
        self._rows = row_index(numbers[0], device)
        self.slots, self.positions = torch.as_tensor(numbers[1:], device=device)
        self._elsewhere: RowCells | None = None
        runs = _runs(numbers)
        least = MIN_RUN_LEN[device.type] * len(runs)
        self._runs = runs if numbers.shape[1] >= least > 0 else None

    @classmethod
    def of(cls, stretches: Iterable[Stretch], device: torch.device) -> RowCells:
        """Return those of stretches of cells."""
        parts = [
            (rows, np.full(len(rows), slot), np.arange(len(rows)) + position)
            for slot, position, rows in stretches
        ]
        rows, slots, positions = np.concatenate(parts, axis=1)
        return cls(rows, slots, positions, device)

    def on(self, device: torch.device) -> RowCells:
        """Return the same for tensors on another device."""
        if device == self._device:
            return self
        if self._elsewhere is None or self._elsewhere._device != device:
            rows, slots, positions = self._numbers
            self._elsewhere = RowCells(rows, slots, positions, device)
        return self._elsewhere

    def rows_of(self, packed: Tensor) -> Tensor:
        """Return the rows, in order, of a packed tensor."""
        return packed[self._rows]

    def by_slot(self, rows: Tensor, num_slots: int) -> Tensor:
        """Return rows, already in order, by slot, which has one at most, or zeros."""
        if len(rows) == num_slots and self._in_slot_order:
            return rows
        by_slot = rows.new_zeros(num_slots, *rows.shape[1:])
        by_slot[self.slots] = rows
        return by_slot

    @cached_property
    def _in_slot_order(self) -> bool:
        return bool((np.diff(self._numbers[1]) == 1).all())

    def store(self, rows: Tensor, cells: Tensor) -> None:
        """Copy rows, already in order, to their cells."""
        if self._runs is None:
            cells[self.slots, self.positions] = rows
            return
        for run in self._runs:
            cells[run.slot, run.positions] = rows[run.order]

    def spread(self, packed: Tensor, cells: Tensor) -> None:
        """Copy rows of a packed tensor to their cells."""
        if self._runs is None:
            self.store(self.rows_of(packed), cells)
            return
        for run in self._runs:
            cells[run.slot, run.positions] = packed[run.rows]

    def collect(self, cells: Tensor, packed: Tensor) -> None:
        """Copy cells to their rows of a packed tensor."""
        if self._runs is None:
            packed[self._rows] = cells[self.slots, self.positions]
            return
        for run in self._runs:
            packed[run.rows] = cells[run.slot, run.positions]


def run_bounds(numbers: NDArray[np.int64], steps: ArrayLike) -> list[int]:
    """Where runs begin, and the last one ends, in which all numbers [k, n] grow by steps [k, 1]."""
    if not numbers.size:
        return [0]
    breaks = (np.diff(numbers) != steps).any(axis=0)
    return [0, *(np.flatnonzero(breaks) + 1).tolist(), numbers.shape[1]]


def _runs(numbers: NDArray[np.int64]) -> list[_Run]:
    """Runs of rows, slots and positions [3, n]."""
    bounds = run_bounds(numbers, [[1], [0], [1]])
    return [
        _Run(
            rows=slice(row, row + stop - start),
            order=slice(start, stop),
            slot=slot,
            positions=slice(position, position + stop - start),
        )
        for (row, slot, position), (start, stop) in zip(
            numbers.T[bounds[:-1]].tolist(), pairwise(bounds), strict=True
        )
    ]
