"""A block's trie laid out for the executor: rows of micro-batches, and who attends to what.

Tokens are packed in preorder, so the rows below a node follow its own without a gap. Attention
divides what a node sees in two. A *segment* is a run of tokens that enough others see: its keys and
values are stored once, and all rows below attend to them in one product. What lies between a
node's nearest segment and its own end is its *chain*: too short, or seen by too few, to be worth a
product of its own, so each node attends to a copy of it together with itself. Every token is still
computed once; only keys and values of chains are read several times.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexgen_helm.batching.prefix_tree import NO_NODE, Node
from flexgen_helm.batching.readings import NO_SEGMENT, Reading, joined_readings

Rows = NDArray[np.int64]
"""Row numbers."""

MIN_SEGMENT_READS = 128
"""Keys copied for all that see them from which a product of their own is cheaper. It costs about
50 us a layer on two CPU cores, and 128 more rows of a batched product about as much."""

MIN_DECODED_SEGMENT_READS = 1024
"""The same where sequences will decode: the product is then needed for every token again, while
the copy is made once and only read again."""

MAX_CARRIED = 64
"""Tokens of a chain that reaches into another micro-batch from which it becomes a segment."""


class Place(NamedTuple):
    """Where a node is computed and what it sees."""

    node: Node
    micro_batch: int
    """Its micro-batch, or `KEPT` for one whose keys and values are there already."""

    row: int
    """Its first row in that micro-batch."""

    context: int
    """Nearest segment above it, or `NO_SEGMENT`; that one's context is the next, and so on."""

    chain: Rows
    """Rows, among those its micro-batch sees, of the tokens between its context and its end, its
    own included."""

    segment: int
    """Which segment its chain is, or `NO_SEGMENT`."""

    @property
    def own(self) -> slice:
        """Its rows."""
        return slice(self.row, self.row + self.node.num_tokens)


KEPT = -1


@dataclass(frozen=True, kw_only=True)
class PackedMicroBatch:
    """Part of a block that passes through a layer together."""

    num_rows: int
    carried: Rows
    """Rows, among those the micro-batch before sees, that it sees in front of its own: beginnings
    of chains that were cut between the two."""

    places: list[Place]
    """Its nodes, in the order of their rows."""

    readings: list[Reading]
    """Which rows attend to which segments, its own and earlier ones'."""


@dataclass(frozen=True, kw_only=True)
class PackedTree:
    """The whole block."""

    places: list[Place]
    """All nodes in preorder; nodes longer than a micro-batch come as several, one below another."""

    contexts: list[int]
    """Per segment, the segment above it."""

    owners: list[int]
    """Per segment, index of the place whose chain it is."""

    micro_batches: list[PackedMicroBatch]

    def path(self, segment: int) -> list[int]:
        """Return a segment and all those above it, uppermost first."""
        found = []
        while segment != NO_SEGMENT:
            found.append(segment)
            segment = self.contexts[segment]
        return found[::-1]


def pack_tree(
    nodes: Sequence[Node], decoding: Sequence[int], *, micro_batch_tokens: int, kept: int, keep: int
) -> PackedTree:
    """Lay out a trie.

    Args:
        nodes: the trie, in preorder.
        decoding: per position, sequences that will go on after their first token.
        micro_batch_tokens: rows of a micro-batch at most.
        kept: depth down to which the path of position 0 is there already.
        keep: depth down to which the path of the last position must be made of segments.
    """
    nodes, micro_batches = _assign(nodes, kept, micro_batch_tokens)
    return _Layout(nodes, micro_batches, decoding, keep).layout()


def _assign(
    nodes: Sequence[Node], kept: int, micro_batch_tokens: int
) -> tuple[list[Node], list[int]]:
    """Divide nodes into micro-batches of about equal size, cutting those that are longer."""
    pieces = _cut(nodes, kept, micro_batch_tokens)
    computed = sum(node.num_tokens for node in pieces if not _is_kept(node, kept))
    limit = -(-computed // max(1, -(-computed // micro_batch_tokens)))
    assigned: list[int] = []
    micro_batch, used = 0, 0
    for node in pieces:
        if _is_kept(node, kept):
            assigned.append(KEPT)
            continue
        # Half a node may stick out of an even share, but never out of the largest micro-batch.
        fits = used + node.num_tokens <= micro_batch_tokens
        if used and not (fits and used + node.num_tokens // 2 <= limit):
            micro_batch, used = micro_batch + 1, 0
        assigned.append(micro_batch)
        used += node.num_tokens
    return pieces, assigned


def _cut(nodes: Sequence[Node], kept: int, longest: int) -> list[Node]:
    """Replace each node that is longer than a micro-batch by several, one below another."""
    pieces: list[Node] = []
    last_piece: dict[int, int] = {NO_NODE: NO_NODE}
    for index, node in enumerate(nodes):
        parent = last_piece[node.parent]
        step = node.num_tokens if _is_kept(node, kept) else longest
        for start in range(node.start, node.end, step):
            end = min(start + step, node.end)
            pieces.append(node._replace(parent=parent, start=start, end=end))
            parent = len(pieces) - 1
        last_piece[index] = parent
    return pieces


def is_kept_later(node: Node, num_positions: int, keep: int) -> bool:
    """Whether a node is part of what the last position's path leaves for the next block."""
    return node.last == num_positions and node.end <= keep


def _is_kept(node: Node, kept: int) -> bool:
    return node.first == 0 and node.end <= kept


class _Layout:
    """Walks the nodes in preorder and decides for each what it sees and whether it is a segment."""

    def __init__(
        self,
        nodes: Sequence[Node],
        micro_batches: Sequence[int],
        decoding: Sequence[int],
        keep: int,
    ) -> None:
        self._nodes = nodes
        self._micro_batches = micro_batches
        self._decoding_before = list(accumulate(decoding, initial=0))
        self._readers_before = list(accumulate((max(1, n) for n in decoding), initial=0))
        self._num_positions = len(decoding)
        self._keep = keep
        self._ends = _subtree_ends(nodes)
        self._places: list[Place] = []
        self._contexts: list[int] = []
        self._owners: list[int] = []
        self._visible: dict[int, Rows] = {}
        self._carried: list[Rows] = []

    def layout(self) -> PackedTree:
        row, micro_batch = 0, KEPT
        for index, node in enumerate(self._nodes):
            if self._micro_batches[index] != micro_batch:
                row, micro_batch = 0, self._micro_batches[index]
                self._carry(node.parent)
            self._place(index, row)
            row += node.num_tokens
        return PackedTree(
            places=self._places,
            contexts=self._contexts,
            owners=self._owners,
            micro_batches=self._pack(),
        )

    def _carry(self, parent: int) -> None:
        """Begin a micro-batch: what its nodes see of the one before, and is in no segment."""
        path = [index for index in self._ancestors(parent) if not self._is_segment_owner(index)]
        carried = [self._visible[index] for index in reversed(path)]
        self._carried.append(np.concatenate([_NO_ROWS, *carried]))
        self._visible = {}
        row = 0
        for index, rows in zip(reversed(path), carried, strict=True):
            self._visible[index] = np.arange(row, row + len(rows))
            row += len(rows)

    def _place(self, index: int, row: int) -> None:
        node, micro_batch = self._nodes[index], self._micro_batches[index]
        first = row + (0 if micro_batch == KEPT else len(self._carried[-1]))
        self._visible[index] = np.arange(first, first + node.num_tokens)
        context, chain = NO_SEGMENT, [self._visible[index]]
        for ancestor in self._ancestors(node.parent):
            if self._is_segment_owner(ancestor):
                context = self._places[ancestor].segment
                break
            chain.append(self._visible[ancestor])
        rows = np.concatenate(chain[::-1])
        segment = NO_SEGMENT
        if self._is_segment(index, len(rows)):
            segment = len(self._contexts)
            self._contexts.append(context)
            self._owners.append(index)
        self._places.append(Place(node, micro_batch, row, context, rows, segment))

    def _ancestors(self, index: int) -> Iterator[int]:
        """Yield a node and those above it, upwards."""
        while index != NO_NODE:
            yield index
            index = self._nodes[index].parent

    def _is_segment_owner(self, index: int) -> bool:
        return self._places[index].segment != NO_SEGMENT

    def _is_segment(self, index: int, chain_len: int) -> bool:
        node = self._nodes[index]
        kept = self._micro_batches[index] == KEPT
        needed_later = is_kept_later(node, self._num_positions, self._keep)
        goes_on = self._micro_batches[self._ends[index] - 1] != self._micro_batches[index]
        is_cut = goes_on and chain_len > MAX_CARRIED
        num_readers = self._readers_before[node.last] - self._readers_before[node.first]
        decodes = self._decoding_before[node.last] > self._decoding_before[node.first]
        least = MIN_DECODED_SEGMENT_READS if decodes else MIN_SEGMENT_READS
        shared = num_readers > 1 and chain_len * num_readers >= least
        return kept or needed_later or is_cut or shared

    def _pack(self) -> list[PackedMicroBatch]:
        places: list[list[Place]] = [[] for _ in range(max(self._micro_batches, default=KEPT) + 1)]
        for place in self._places:
            if place.micro_batch != KEPT:
                places[place.micro_batch].append(place)
        readings = self._readings(len(places))
        return [
            PackedMicroBatch(
                num_rows=sum(place.node.num_tokens for place in own),
                carried=self._carried[index],
                places=own,
                readings=readings[index],
            )
            for index, own in enumerate(places)
        ]

    def _readings(self, num_micro_batches: int) -> list[list[Reading]]:
        """What each micro-batch reads."""
        below: list[dict[int, slice]] = [{} for _ in range(num_micro_batches)]
        for segment, owner in enumerate(self._owners):
            index, end = owner + 1, self._ends[owner]
            while index < end:
                micro_batch = self._micro_batches[index]
                after = min(end, bisect_right(self._micro_batches, micro_batch))
                if micro_batch != KEPT:
                    rows = slice(self._places[index].row, self._places[after - 1].own.stop)
                    below[micro_batch][segment] = rows
                index = after
        return [list(joined_readings(rows, self._contexts)) for rows in below]


_NO_ROWS = np.arange(0)


def _subtree_ends(nodes: Sequence[Node]) -> list[int]:
    """Per node, the index after its last descendant."""
    ends = list(range(1, len(nodes) + 1))
    for index in reversed(range(len(nodes))):
        parent = nodes[index].parent
        if parent != NO_NODE:
            ends[parent] = max(ends[parent], ends[index])
    return ends
