"""Weights of which a part is brought from disk, or to the device, for every pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from flexgen_helm.offload.disk import DiskReader, aligned_buffer
from flexgen_helm.offload.disk_part import DiskPart, PartRead
from flexgen_helm.offload.link import Link
from flexgen_helm.offload.part_file import PartFile, Region
from flexgen_helm.offload.parts_ahead import OffDevice, PartsAhead, PartsFromDisk, PartsToDevice
from flexgen_helm.offload.store import WeightStore, tensor_of
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.offload.weights import Decompressor, Part
from flexgen_helm.quant.prepacked import StoredTensor
from flexgen_helm.quant.tensor import QuantizedTensor
from flexgen_helm.specs.placement import Tier

Placed = Mapping[str, Mapping[str, Tier]]
"""Per part, tier of each tensor that is not on the device."""

LayOut = Callable[[Tensor | QuantizedTensor, torch.dtype], StoredTensor]
"""Brings a matrix into the order in which rows of a dtype read it fastest, once and for all."""


OPENED_AT_ONCE = 4
"""Parts: while one is read from disk, others are checked and copied to the device."""


class _Opened(NamedTuple):
    """What of a part is on the device, and what is not."""

    resident: dict[str, StoredTensor]
    elsewhere: OffDevice | None


class StreamedWeights:
    """Parts of a store. What is not on the device is brought there whenever it is fetched.

    While a part is used the next one is on its way, into the other of two staging buffers, so a
    part is valid until the next one is fetched.

    Args:
        store: where they come from.
        placed: what stays on disk or in the host's memory.
        dtype: compute dtype.
        device: what computes.
        lay_out: applied to matrices that stay on the device.
        overlap: whether the next part is brought while one is used.
        link: to the device; `None` where it has the host's memory.
        waiting: told of waits for the disk.
    """

    def __init__(
        self,
        store: WeightStore,
        placed: Placed,
        *,
        dtype: torch.dtype,
        device: torch.device,
        lay_out: LayOut,
        overlap: bool = True,
        link: Link | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        self._store = store
        self._dtype, self._decompressor = dtype, Decompressor(dtype)
        self._device, self._link = device, link
        self._lay_out = lay_out
        self._reader = DiskReader()
        self._resident: dict[str, dict[str, StoredTensor]] = {}
        self._elsewhere: dict[str, OffDevice] = {}
        for name, (resident, elsewhere) in zip(store.part_names, self._open(placed), strict=True):
            self._resident[name] = resident
            if elsewhere is not None:
                self._elsewhere[name] = elsewhere
        self._ahead = self._bring_ahead(overlap, waiting or Waiting())

    @property
    def num_bytes(self) -> int:
        return self._store.num_bytes

    @property
    def linear_bytes(self) -> int:
        return self._store.linear_bytes

    def fetch(self, part: str, *, packed: bool = False) -> Part:
        """See `WeightSource.fetch`.

        Raises:
            StoreError: the disk cannot be read, or what it holds has changed.
        """
        tensors = dict(self._resident[part])
        if part in self._elsewhere:
            # Not laid out: that takes ten times as long as it saves for a product.
            tensors |= self._store.assemble(self._ahead.take(part))
        return self._decompressor.decompress(tensors, but_packed=packed)

    def close(self) -> None:
        """Let reads that are under way end, and give back the memory."""
        self._ahead.close()
        self._reader.close()
        self._resident.clear()
        self._elsewhere.clear()

    def _open(self, placed: Placed) -> list[_Opened]:
        """Read what stays in memory, of all parts."""
        parts = [(name, placed.get(name, {})) for name in self._store.part_names]
        if self._link is None:  # a thread's products would have threads, and memory, of their own
            return [self._open_part(*part) for part in parts]
        with ThreadPoolExecutor(OPENED_AT_ONCE) as threads:
            return [*threads.map(self._open_part, *zip(*parts, strict=True))]

    def _open_part(self, name: str, tiers: Mapping[str, Tier]) -> _Opened:
        file = self._store.part(name)
        on: dict[Tier, dict[str, Region]] = {tier: {} for tier in Tier}
        for region, where in file.regions.items():
            tier = tiers.get(tensor_of(region), Tier.DEVICE)
            same = self._link is None and tier is Tier.HOST
            on[Tier.DEVICE if same else tier][region] = where
        resident = self._load(file, on[Tier.DEVICE])
        if not on[Tier.HOST] and not on[Tier.DISK]:
            return _Opened(resident, None)
        on_host = DiskPart(file, on[Tier.HOST])
        in_memory = self._read(on_host, aligned_buffer if self._link is None else self._link.buffer)
        return _Opened(resident, OffDevice(on_host, in_memory, DiskPart(file, on[Tier.DISK])))

    def _bring_ahead(self, overlap: bool, waiting: Waiting) -> PartsAhead:
        if self._link is None:
            on_disk = {name: part.on_disk for name, part in self._elsewhere.items()}
            return PartsFromDisk(on_disk, self._reader, overlap=overlap, waiting=waiting)
        return PartsToDevice(
            self._elsewhere,
            self._reader,
            self._link,
            self._device,
            overlap=overlap,
            waiting=waiting,
        )

    def _load(self, file: PartFile, regions: Mapping[str, Region]) -> dict[str, StoredTensor]:
        """Read what stays on the device."""
        part = DiskPart(file, regions)
        tensors = part.views(self._read(part, aligned_buffer))
        # Copies, as the buffer also holds what lies between.
        loaded = self._store.assemble(
            {name: tensor.to(self._device, copy=True) for name, tensor in tensors.items()}
        )
        return {name: self._as_read(name, tensor) for name, tensor in loaded.items()}

    def _read(self, part: DiskPart, make_buffer: Callable[[int], Tensor]) -> Tensor:
        """Return the bytes of a part."""
        buffer = make_buffer(part.num_bytes)
        PartRead(part, buffer, self._reader).finish()
        return buffer

    def _as_read(self, name: str, tensor: Tensor | QuantizedTensor) -> StoredTensor:
        """Lay out a matrix."""
        return self._lay_out(tensor, self._dtype) if name in self._store.linear_names else tensor
