"""One numbering for the rows of a block, over all its micro-batches."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from flexgen_helm.batching.packing import KEPT, PackedTree, Rows
from flexgen_helm.batching.prefix_tree import NO_NODE


class RowNumbers:
    """Numbers all rows of a block: kept ones first, then those of each micro-batch."""

    def __init__(self, tree: PackedTree, num_kept: int) -> None:
        self.num_kept = num_kept
        self._places = tree.places
        sizes = [micro_batch.num_rows for micro_batch in tree.micro_batches]
        self._starts = list(accumulate(sizes, initial=num_kept))
        self.total = self._starts[-1]

    def of(self, index: int) -> slice:
        """Rows of a place."""
        place = self._places[index]
        start = 0 if place.micro_batch == KEPT else self._starts[place.micro_batch]
        return slice(start + place.row, start + place.own.stop)

    def before(self, index: int) -> Rows:
        """Rows of the tokens before each token of a place; the very first token has none."""
        own, parent = self.of(index), self._places[index].node.parent
        rows = np.arange(own.start, own.stop - 1)
        return rows if parent == NO_NODE else np.concatenate([[self.of(parent).stop - 1], rows])

    def by_micro_batch(self, rows: Rows) -> list[Rows]:
        """Divide sorted rows among the micro-batches, numbered within each."""
        bounds = np.searchsorted(rows, self._starts)
        return [
            rows[bounds[index] : bounds[index + 1]] - start
            for index, start in enumerate(self._starts[:-1])
        ]
