"""Prompts as a token trie: what several of them begin with is one node.

Everything here is linear in the tokens but for the sort, whose comparisons are `memcmp`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

_TOKEN = np.dtype(">u4")
"""Big-endian, so that bytes sort as the numbers do."""


class Order(NamedTuple):
    """Prompts in depth-first order of their trie; a *position* is a place in this order."""

    indices: list[int]
    """Prompt at each position."""

    shared: list[int]
    """Tokens that the prompt at each position has in common with the one before it; 0 at first."""


class Node(NamedTuple):
    """A run of tokens between two branchings of the trie.

    A list of nodes is in preorder: parents before children, and a subtree is contiguous.
    """

    parent: int
    """Index of the node its tokens follow, or `NO_NODE`."""

    start: int
    """Depth of its first token: the number of tokens before it in a prompt."""

    end: int
    """Depth after its last token."""

    first: int
    """First position whose prompt runs through it."""

    last: int
    """Position after the last such one."""

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @property
    def num_prompts(self) -> int:
        return self.last - self.first


NO_NODE = -1


def prefix_order(prompts: Sequence[Sequence[int]]) -> Order:
    """Sort prompts so that those with a common prefix are neighbours."""
    keys = [np.asarray(prompt, dtype=_TOKEN).tobytes() for prompt in prompts]
    indices = sorted(range(len(keys)), key=keys.__getitem__)
    shared = [_common_prefix(keys[one], keys[other]) for one, other in pairwise(indices)]
    return Order(indices, [0, *shared] if indices else [])


def build_tree(
    lengths: Sequence[int], shared: Sequence[int], *, kept: int = 0, keep: int = 0
) -> list[Node]:
    """Return the trie of consecutive positions, in preorder.

    Args:
        lengths: tokens of each prompt.
        shared: tokens each has in common with the one before it; the first number is not read.
        kept: tokens of the first prompt that are there already; a node ends at this depth.
        keep: tokens of the last prompt that a later one needs; a node ends at this depth.
    """
    trie = _OpenPath()
    if kept:
        trie.open(kept, 0)
    for position, length in enumerate(lengths):
        depth = shared[position] if position else kept
        trie.close(depth, position)
        if length > depth:
            trie.open(length, position)
    trie.close(keep, len(lengths))
    trie.close(0, len(lengths))
    return _link(sorted(trie.closed))


class _Closed(NamedTuple):
    """A finished node; the order of its fields makes sorted nodes preordered."""

    first: int
    end: int
    start: int
    last: int


class _Open(NamedTuple):
    end: int
    first: int


class _OpenPath:
    """The path from the root to the prompt read last, of which some nodes are still growing."""

    def __init__(self) -> None:
        self.closed: list[_Closed] = []
        self._path: list[_Open] = []

    def open(self, end: int, first: int) -> None:
        self._path.append(_Open(end, first))

    def close(self, depth: int, last: int) -> None:
        """End all nodes below `depth`, splitting one that reaches across it."""
        closed = None
        while self._path and self._path[-1].end > depth:
            closed = self._path.pop()
            start = max(depth, self._depth())
            self.closed.append(_Closed(closed.first, closed.end, start, last))
        if closed is not None and depth > self._depth():
            self.open(depth, closed.first)

    def _depth(self) -> int:
        return self._path[-1].end if self._path else 0


def _link(closed: Sequence[_Closed]) -> list[Node]:
    """Give preordered nodes their parents."""
    nodes: list[Node] = []
    path: list[int] = []
    for first, end, start, last in closed:
        while path and nodes[path[-1]].end > start:
            path.pop()
        nodes.append(Node(path[-1] if path else NO_NODE, start, end, first, last))
        path.append(len(nodes) - 1)
    return nodes


def _common_prefix(one: bytes, other: bytes) -> int:
    """Tokens that two keys begin with alike."""
    length = min(len(one), len(other)) // _TOKEN.itemsize
    differ = np.frombuffer(one, _TOKEN, length) != np.frombuffer(other, _TOKEN, length)
    return int(differ.argmax()) if differ.any() else length
