"""The block schedule as data: what is computed after what.

For each layer, for each micro-batch: one pass over the weights serves the whole block (FlexGen
paper, section 4.2). The executor only carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product, starmap, zip_longest
from typing import NamedTuple


class Turn(NamedTuple):
    """A layer, and a micro-batch that passes it."""

    layer: int
    micro_batch: int


class Step(NamedTuple):
    """Compute one layer for one micro-batch, while what the next step needs is on its way."""

    layer: int
    micro_batch: int
    begins_layer: bool
    """Whether this layer's weights must be fetched first."""

    ends_layer: bool
    """Whether all micro-batches have passed this layer afterwards."""

    following: Turn | None
    """What comes next, if anything does: what it reads can be read ahead."""


def turns_of_pass(num_layers: int, num_micro_batches: int) -> Iterator[Turn]:
    """Yield the turns of one pass over the weights."""
    yield from starmap(Turn, product(range(num_layers), range(num_micro_batches)))


def block_schedule(num_layers: int, num_micro_batches: int) -> Iterator[Step]:
    """Yield the steps of one pass over the weights."""
    turns = [*turns_of_pass(num_layers, num_micro_batches)]
    for (layer, micro_batch), following in zip_longest(turns, turns[1:]):
        yield Step(
            layer,
            micro_batch,
            begins_layer=micro_batch == 0,
            ends_layer=micro_batch == num_micro_batches - 1,
            following=following,
        )
