"""Hidden states of micro-batches between two layers, where the policy has them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flexgen_helm.offload.link import Lane, Link, Transit
from flexgen_helm.offload.spill import RecordLayout, Spill
from flexgen_helm.specs.placement import ON_DEVICE, Placement, Tier

_PARTS = (Tier.DEVICE, Tier.HOST, Tier.DISK)
"""In the order of the rows they hold."""


class _Away(Protocol):
    """Rows that are not where they are computed."""

    def bring(self) -> None:
        """Begin what `take` will wait for, unless that has been done."""

    def take(self) -> Tensor:
        """Return them, once, where they are computed."""


class _OnHost:
    """In the host's memory, where the device has its own."""

    def __init__(self, rows: Tensor, link: Link) -> None:
        self._there = link.down(rows)
        self._back: Transit | None = None

    def bring(self) -> None:
        self._back = self._back or self._there.back(Lane.CACHE)

    def take(self) -> Tensor:
        self.bring()
        assert self._back is not None, "just begun"
        return self._back.use()


class _OnDisk:
    """On disk, below the memory of what computes."""

    def __init__(self, rows: Tensor, spill: Spill) -> None:
        layout = RecordLayout.of([rows])
        self._region = spill.region(layout.num_bytes)
        self._region.append_copy(layout, [rows])

    def bring(self) -> None:
        self._region.begin_read()

    def take(self) -> Tensor:
        with self._region.read() as [[rows]]:
            return rows.clone()


class _OnDiskBehindLink:
    """On disk, where the device has memory of its own: threads do what has to wait."""

    def __init__(self, rows: Tensor, spill: Spill, link: Link) -> None:
        layout = RecordLayout.of([rows])
        self._link, self._region = link, spill.region(layout.num_bytes)
        copy = link.down(rows)

        def store() -> None:
            self._region.append_copy(layout, [copy.wait()])

        self._stored = link.beside(Lane.STORE, store)
        self._back: Future[Transit] | None = None

    def bring(self) -> None:
        self._back = self._back or self._link.beside(Lane.CACHE, self._load)

    def take(self) -> Tensor:
        self.bring()
        assert self._back is not None, "just begun"
        with self._link.waiting.for_disk():
            copy = self._back.result()
        return copy.use()

    def _load(self) -> Transit:
        self._stored.result()
        with self._region.read() as [[rows]]:
            copy = self._link.up(rows, Lane.CACHE)
            copy.wait()  # others will use the memory
        return copy


class _Kept(NamedTuple):
    """Rows of one micro-batch, in their order."""

    in_memory: list[Tensor]
    away: list[_Away]


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
        if self._link is not None and not self._link.overlap:
            return
        if (kept := self._kept.get(micro_batch)) is not None:
            for rows in kept.away:
                rows.bring()

    def take(self, micro_batch: int) -> Tensor:
        """Return the hidden states of a micro-batch [n, e], which may be overwritten."""
        if self._placement == ON_DEVICE:
            return self._places[micro_batch]
        kept = self._kept.pop(micro_batch)
        parts = [*kept.in_memory, *(rows.take() for rows in kept.away)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _send(self, tier: Tier, rows: Tensor) -> _Away | None:
        """Begin to bring rows to a tier; return `None` if that is the memory they are in."""
        if tier is Tier.DISK:
            assert self._spill is not None, "activations on disk come with a spill"
            if self._link is None:
                return _OnDisk(rows, self._spill)
            return _OnDiskBehindLink(rows, self._spill, self._link)
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
