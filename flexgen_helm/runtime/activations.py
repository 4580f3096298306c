"""Hidden states of micro-batches between two layers, where the policy has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flexgen_helm.offload.link import Lane, Link, Transit
from flexgen_helm.offload.spill import Spill
from flexgen_helm.offload.spilled import StoredTensors, spill_tensors
from flexgen_helm.specs.placement import ON_DEVICE, Placement, Tier

_PARTS = (Tier.DEVICE, Tier.HOST, Tier.DISK)
"""In the order of the rows they hold."""


class _OnHost:
    """Rows in the host's memory, where the device has its own."""

    def __init__(self, rows: Tensor, link: Link) -> None:
        self._link, self._there = link, link.down(rows)
        self._ahead: Transit | None = None

    def begin_read(self) -> None:
        """Begin what `read` will wait for."""
        if self._link.overlap:
            self._ahead = self._ahead or self._there.back(Lane.CACHE)

    def read(self) -> Sequence[Tensor]:
        """Return them, once, where they are computed."""
        return [(self._ahead or self._there.back(Lane.CACHE)).use()]


class _Kept(NamedTuple):
    """Rows of one micro-batch, in their order."""

    in_memory: list[Tensor]
    away: list[_OnHost | StoredTensors]


class Activations:
    """What the next layer begins with, by micro-batch.

    Each micro-batch has its part on each tier, so that the fractions hold for any number of them.

    Args:
        placement: fractions of the rows.
        spill: where those on disk are; `None` if the placement has none there.
        link: to the device; `None` where it has the host's memory.
    """

    def __init__(
        self,
        placement: Placement,
        spill: Spill | None,
        link: Link | None = None,
    ) -> None:
        self._placement = placement
        self._spill, self._link = spill, link
        self._kept: dict[int, _Kept] = {}
        self._places: dict[int, Tensor] = {}
        """Of those that are all on the device: the same ones in all layers."""

    def put(self, micro_batch: int, hidden: Tensor) -> None:
        """Keep the hidden states [n, e] of a micro-batch."""
        if self._placement == ON_DEVICE:
            # Where they were before: new memory in each layer, between what is computed on the way,
            # would leave holes that make the heap grow by hundreds of megabytes.
            place = self._places.setdefault(micro_batch, hidden)
            if place is not hidden:
                place.copy_(hidden)
            return
        kept = self._kept[micro_batch] = _Kept([], [])
        for tier, rows in self._parts(hidden):
            away = self._send(tier, rows)
            if away is None:  # a copy, as a slice would hold on to all rows
                kept.in_memory.append(rows.clone())
            else:
                kept.away.append(away)

    def begin_take(self, micro_batch: int) -> None:
        """Begin what `take` will wait for."""
        if (kept := self._kept.get(micro_batch)) is not None:
            for rows in kept.away:
                rows.begin_read()

    def take(self, micro_batch: int) -> Tensor:
        """Return the hidden states of a micro-batch [n, e], which may be overwritten."""
        if self._placement == ON_DEVICE:
            return self._places[micro_batch]
        kept = self._kept.pop(micro_batch)
        parts = [*kept.in_memory, *(part for rows in kept.away for part in rows.read())]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _send(self, tier: Tier, rows: Tensor) -> _OnHost | StoredTensors | None:
        """Begin to bring rows to a tier; return `None` if that is the memory they are in."""
        if tier is Tier.DISK:
            assert self._spill is not None, "activations on disk come with a spill"
            return spill_tensors([rows], self._spill, self._link)
        if tier is Tier.HOST and self._link is not None:
            return _OnHost(rows, self._link)
        return None

    def _parts(self, hidden: Tensor) -> Iterator[tuple[Tier, Tensor]]:
        start, fraction = 0, 0.0
        for tier in _PARTS:
            fraction += self._placement.on(tier)
            stop = round(fraction * len(hidden))
            if stop > start:
                yield tier, hidden[start:stop]
            start = stop
