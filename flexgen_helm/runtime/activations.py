"""Hidden states of micro-batches between two layers, where the policy has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flexgen_helm.offload.link import Lane, Link, Transit
from flexgen_helm.offload.spill import RecordLayout, Spill, SpillRegion
from flexgen_helm.specs.placement import ON_DEVICE, Placement, Tier

_PARTS = (Tier.DEVICE, Tier.HOST, Tier.DISK)
"""In the order of the rows they hold."""


@dataclass(kw_only=True)
class _Kept:
    """Rows of one micro-batch, the first on the device, the last on disk."""

    in_memory: list[Tensor]
    on_host: Transit | None = None
    """On its way to the host, where that has memory of its own."""

    ahead: Transit | None = None
    """On its way back."""

    on_disk: SpillRegion | None = None

    def bring(self) -> None:
        """Begin to bring what is on the host, unless that has been done."""
        if self.on_host is not None and self.ahead is None:
            self.ahead = self.on_host.back(Lane.CACHE)


class Activations:
    """What the next layer begins with, by micro-batch.

    Each micro-batch has its part on each tier, so that the fractions hold for any number of them.

    Args:
        placement: fractions of the rows.
        device: what computes.
        spill: where those on disk are; `None` if the placement has none there.
        link: to the device; `None` where it has the host's memory.
    """

    def __init__(
        self,
        placement: Placement,
        device: torch.device,
        spill: Spill | None,
        link: Link | None = None,
    ) -> None:
        self._placement = placement
        self._device, self._spill, self._link = device, spill, link
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
        kept = self._kept[micro_batch] = _Kept(in_memory=[])
        for tier, rows in self._parts(hidden):
            if tier is Tier.DISK:
                assert self._spill is not None, "activations on disk come with a spill"
                layout = RecordLayout.of([rows])
                kept.on_disk = self._spill.region(layout.num_bytes)
                kept.on_disk.append_copy(layout, [rows])
            elif tier is Tier.HOST and self._link is not None:
                kept.on_host = self._link.down(rows)
            else:  # a copy, as a slice would hold on to all rows
                kept.in_memory.append(rows.clone())

    def begin_take(self, micro_batch: int) -> None:
        """Begin what `take` will wait for."""
        kept = self._kept.get(micro_batch)
        if kept is None:
            return
        if kept.on_disk is not None:
            kept.on_disk.begin_read()
        if self._link is not None and self._link.overlap:
            kept.bring()

    def take(self, micro_batch: int) -> Tensor:
        """Return the hidden states of a micro-batch [n, e], which may be overwritten."""
        if self._placement == ON_DEVICE:
            return self._places[micro_batch]
        kept = self._kept.pop(micro_batch)
        parts = kept.in_memory
        kept.bring()
        if kept.ahead is not None:
            parts.append(kept.ahead.use())
        if kept.on_disk is not None:
            with kept.on_disk.read() as [[rows]]:
                parts.append(rows.to(self._device, copy=True))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _parts(self, hidden: Tensor) -> Iterator[tuple[Tier, Tensor]]:
        start, fraction = 0, 0.0
        for tier in _PARTS:
            fraction += self._placement.on(tier)
            stop = round(fraction * len(hidden))
            if stop > start:
                yield tier, hidden[start:stop]
            start = stop
