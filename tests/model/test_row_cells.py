import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.model import row_cells
from flexgen_helm.model.row_cells import RowCells, Stretch

CPU = torch.device("cpu")
NUM_ROWS, NUM_SLOTS, NUM_POSITIONS = 12, 3, 9


@st.composite
def matchings(draw):
    """Distinct rows and as many distinct cells."""
    count = draw(st.integers(0, NUM_ROWS))
    in_order = draw(st.booleans())
    rows = draw(st.permutations(range(NUM_ROWS)))[:count]
    cells = draw(st.permutations(range(NUM_SLOTS * NUM_POSITIONS)))[:count]
    if in_order:  # has runs
        rows, cells = sorted(rows), sorted(cells)
    return [(row, *divmod(cell, NUM_POSITIONS)) for row, cell in zip(rows, cells, strict=True)]


@given(matching=matchings(), by_run=st.booleans())
def test_each_row_has_its_cell(matching, by_run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_cells, "MIN_RUN_LEN", {"cpu": 0 if by_run else 10**9})
        mapping = RowCells(*np.array(matching).reshape(-1, 3).T, CPU)
    packed = torch.arange(1, NUM_ROWS + 1.0)[:, None]
    cells = torch.zeros(NUM_SLOTS, NUM_POSITIONS, 1)
    mapping.spread(packed, cells)
    expected = torch.zeros_like(cells)
    for row, slot, position in matching:
        expected[slot, position] = row + 1
    assert torch.equal(cells, expected)

    stored = torch.zeros_like(cells)
    mapping.store(mapping.rows_of(packed), stored)
    assert torch.equal(stored, expected)

    back = torch.zeros_like(packed)
    mapping.collect(cells, back)
    chosen = [row for row, _, _ in matching]
    assert back[:, 0].nonzero()[:, 0].tolist() == sorted(chosen)
    assert torch.equal(back[chosen], packed[chosen])
    assert torch.equal(mapping.rows_of(packed), packed[chosen])


def test_stretches_stand_one_after_another_in_their_slots():
    mapping = RowCells.of([Stretch(1, 2, np.array([5, 6, 0])), Stretch(0, 0, np.array([3]))], CPU)
    cells = torch.zeros(2, 6, dtype=torch.long)
    mapping.spread(torch.arange(10, 20), cells)
    assert cells.tolist() == [[13, 0, 0, 0, 0, 0], [0, 0, 15, 16, 10, 0]]


@given(slots=st.permutations(range(4)), count=st.integers(0, 4))
def test_rows_by_slot_are_zero_where_a_slot_has_none(slots, count):
    chosen = slots[:count]
    mapping = RowCells(range(count), chosen, [7] * count, CPU)
    by_slot = mapping.by_slot(mapping.rows_of(torch.arange(1, 6.0)[:, None]), 4)
    expected = [chosen.index(slot) + 1 if slot in chosen else 0 for slot in range(4)]
    assert by_slot[:, 0].tolist() == expected
