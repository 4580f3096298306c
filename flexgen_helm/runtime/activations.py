"""Hidden states of micro-batches between two layers, where the policy has them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flexgen_helm.offload.link import Link
from flexgen_helm.offload.spill import Spill
from flexgen_helm.offload.stored_tensors import InMemory, OnHost, StoredTensors, spill_tensors
from flexgen_helm.specs.placement import ON_DEVICE, Placement, Tier

_PARTS = (Tier.DEVICE, Tier.HOST, Tier.DISK)
"""In the order of the rows they hold."""


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
        self._kept: dict[int, list[StoredTensors]] = {}
        """Rows of each, in their order."""
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
        self._kept[micro_batch] = [self._stored(rows, tier) for tier, rows in self._parts(hidden)]

    def begin_take(self, micro_batch: int) -> None:
        """Begin what `take` will wait for."""
        for stored in self._kept.get(micro_batch, ()):
            stored.begin_read()

    def take(self, micro_batch: int) -> Tensor:
        """Return the hidden states of a micro-batch [n, e], which may be overwritten."""
        if self._placement == ON_DEVICE:
            return self._places[micro_batch]
        parts = [rows for stored in self._kept.pop(micro_batch) for rows in stored.read()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _stored(self, rows: Tensor, tier: Tier) -> StoredTensors:
        if tier is Tier.DISK:
            assert self._spill is not None, "activations on disk come with a spill"
            return spill_tensors([rows], self._spill, self._link)
        if tier is Tier.HOST and self._link is not None:
            return OnHost([rows], self._link, brief=True)
        return InMemory([rows.clone()])  # as a slice would hold on to all rows

    def _parts(self, hidden: Tensor) -> Iterator[tuple[Tier, Tensor]]:
        start, fraction = 0, 0.0
        for tier in _PARTS:
            fraction += self._placement.on(tier)
            stop = round(fraction * len(hidden))
            if stop > start:
                yield tier, hidden[start:stop]
            start = stop
