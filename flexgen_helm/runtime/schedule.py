"""The block schedule as data: what is computed after what.

For each layer, for each micro-batch: one pass over the weights serves the whole block (FlexGen
paper, section 4.2). The executor only carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import product, starmap, zip_longest
from typing import NamedTuple


class Turn(NamedTuple):
    """A layer, and a micro-batch that passes it."""

    layer: int
    micro_batch: int


class Half(Enum):
    """Parts of a layer, between which there is attention."""

    PROJECT = "up to queries, keys and values"
    FINISH = "from what was attended to"


class Step(NamedTuple):
    """Compute half a layer for one micro-batch, while what others need is on its way."""

    layer: int
    micro_batch: int
    half: Half
    begins_layer: bool
    """Whether this layer's weights must be fetched first."""

    ends_layer: bool
    """Whether all micro-batches have passed this layer afterwards."""

    following: Turn | None
    """What is projected next, if this projects: what it reads can be read ahead."""


def turns_of_pass(num_layers: int, num_micro_batches: int) -> Iterator[Turn]:
    """Yield the turns of one pass over the weights."""
    yield from starmap(Turn, product(range(num_layers), range(num_micro_batches)))


def block_schedule(
    num_layers: int, num_micro_batches: int, *, apart: bool = False
) -> Iterator[Step]:
    """Yield the steps of one pass over the weights.

    Args:
        num_layers: layers of the model.
        num_micro_batches: that pass them.
        apart: whether attention goes on elsewhere: each micro-batch's while the device projects
            the next and finishes the one before.
    """
    turns = [*turns_of_pass(num_layers, num_micro_batches)]
    following = dict(zip_longest(turns, turns[1:]))
    for layer in range(num_layers):
        halves = [*_halves(num_micro_batches, apart=apart)]
        for index, (half, micro_batch) in enumerate(halves):
            turn = Turn(layer, micro_batch)
            yield Step(
                *turn,
                half=half,
                begins_layer=index == 0,
                ends_layer=index == len(halves) - 1,
                following=following[turn] if half is Half.PROJECT else None,
            )


def _halves(num_micro_batches: int, *, apart: bool) -> Iterator[tuple[Half, int]]:
    """Both halves of a layer for each micro-batch; the second one later if they are apart."""
    behind = 1 if apart else 0
    for index in range(num_micro_batches + behind):
        if index < num_micro_batches:
            yield Half.PROJECT, index
        if index >= behind:
            yield Half.FINISH, index - behind
