"""Rows that are put where their cells are.

Shape letters: b sequences, t cached positions, h heads, d head size, e model width, n rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

from torch import Tensor

from flexgen_helm.model.cache_format import CacheFormat, Rows, tensors_of
from flexgen_helm.model.row_cells import RowCells, run_bounds


def write_rows(cache_format: CacheFormat, target: Rows, cells: RowCells, rows: Tensor) -> None:
    """Put rows [n, e] where they belong, as they are stored."""
    if isinstance(target, Tensor):
        cells.spread(rows.unflatten(1, target.shape[2:]), target)
    else:
        cache_format.store(cells.rows_of(rows), cells.slots, cells.positions, target)


def store_rows(target: Rows, cells: RowCells, tensors: Sequence[Tensor]) -> None:
    """Put rows as they are stored, in the order of their cells, where they belong."""
    if isinstance(target, Tensor):
        tensors = [rows.unflatten(1, target.shape[2:]) for rows in tensors]
    for tensor, part in zip(tensors_of(target), tensors, strict=True):
        cells.store(part, tensor)


def place_later(part: Rows, later: Iterator[RowCells], target: Rows) -> None:
    """Put positions that came one by one [b, t] in the next cells, where they belong."""
    columns = tensors_of(part)
    for index, cells in enumerate(islice(later, columns[0].shape[1])):
        for tensor, column in zip(tensors_of(target), columns, strict=True):
            cells.store(column[cells.slots, index], tensor)


def copy_slots(target: Rows, start: int, source: Rows, slots: Tensor, length: int) -> None:
    """Copy the first positions of some slots to slots from `start` on."""
    numbers = slots.numpy(force=True)
    bounds = run_bounds(numbers[None], [[1]])
    for tensor, other in zip(tensors_of(target), tensors_of(source), strict=True):
        # A run of slots at a time, without a copy in between: tens of megabytes for each storage,
        # among what threads allocate, can make the heap grow by all of them.
        for begin, end in pairwise(bounds):
            first = int(numbers[begin])
            stored = other[first : first + end - begin, :length]
            tensor[start + begin : start + end, :length].copy_(stored)
