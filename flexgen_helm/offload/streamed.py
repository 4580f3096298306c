"""Weights of which a part is read from disk for every pass, one layer ahead of its use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flexgen_helm.offload.disk import DiskReader, aligned_buffer
from flexgen_helm.offload.part_file import PartFile, Region
from flexgen_helm.offload.reading import DiskPart, Reading
from flexgen_helm.offload.store import WeightStore, tensor_of
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.offload.weights import Decompressor, Part, StoredTensor
from flexgen_helm.specs.placement import Tier

Placed = Mapping[str, Mapping[str, Tier]]
"""Per part, tier of each tensor that is not on the device."""

LayOut = Callable[[Tensor], Tensor]
"""Brings a matrix into the order in which it is read fastest, once and for all."""


class StreamedWeights:
    """Parts of a store. What is on disk is read anew whenever it is fetched.

    While a part is used the next one is read into the other of two staging buffers, so a part is
    valid until the next one is fetched.

    Args:
        store: where they come from.
        placed: what stays on disk or in the host's memory.
        dtype: compute dtype.
        device: what computes.
        lay_out: applied to matrices that stay in memory and are not quantized.
        overlap: whether the next part is read while one is used.
        waiting: told of waits for the disk and for copies to the device.
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
        waiting: Waiting | None = None,
    ) -> None:
        self._store = store
        self._waiting = waiting or Waiting()
        self._decompressor = Decompressor(dtype)
        self._device = device
        self._lay_out = lay_out
        self._overlap = overlap
        self._reader = DiskReader()
        self._resident: dict[str, dict[str, StoredTensor]] = {}
        self._streamed: dict[str, DiskPart] = {}
        for name in store.part_names:
            self._add(store.part(name), name, placed.get(name, {}))
        size = max((part.num_bytes for part in self._streamed.values()), default=0)
        self._buffers = [aligned_buffer(size) for _ in range(2 if size else 0)]
        self._order = list(self._streamed)
        self._ahead: Reading | None = None

    @property
    def num_bytes(self) -> int:
        return self._store.num_bytes

    @property
    def linear_bytes(self) -> int:
        return self._store.linear_bytes

    def fetch(self, part: str) -> Part:
        """See `WeightSource.fetch`.

        Raises:
            StoreError: the disk cannot be read, or what it holds has changed.
        """
        tensors = dict(self._resident[part])
        if part in self._streamed:
            # Not laid out: that takes ten times as long as it saves for a product.
            tensors |= self._store.assemble(self._read(part))
        return self._decompressor.decompress({n: self._moved(x) for n, x in tensors.items()})

    def close(self) -> None:
        """Let reads that are under way end, and give back the memory."""
        self._reader.close()
        self._resident.clear()
        self._buffers.clear()

    def _add(self, file: PartFile, name: str, tiers: Mapping[str, Tier]) -> None:
        on_disk = {
            region: where
            for region, where in file.regions.items()
            if tiers.get(tensor_of(region)) is Tier.DISK
        }
        if on_disk:
            self._streamed[name] = DiskPart(file, on_disk)
        kept = {region: x for region, x in file.regions.items() if region not in on_disk}
        self._resident[name] = {
            tensor: x if tiers.get(tensor) is Tier.HOST else self._moved(x)
            for tensor, x in self._load(file, kept).items()
        }

    def _load(self, file: PartFile, regions: Mapping[str, Region]) -> dict[str, StoredTensor]:
        """Read what stays in memory."""
        part = DiskPart(file, regions)
        tensors = Reading(part, aligned_buffer(part.num_bytes), self._reader).finish()
        # Copies, as the buffer also holds what lies between.
        loaded = self._store.assemble({name: tensor.clone() for name, tensor in tensors.items()})
        return {name: self._as_read(name, tensor) for name, tensor in loaded.items()}

    def _moved(self, tensor: StoredTensor) -> StoredTensor:
        """Bring a tensor to the device."""
        if self._device.type == "cpu":
            return tensor
        with self._waiting.for_link():
            if isinstance(tensor, Tensor):
                return tensor.to(self._device)
            return tensor.map(lambda x: x.to(self._device))

    def _as_read(self, name: str, tensor: StoredTensor) -> StoredTensor:
        """Lay out a matrix, unless it is quantized."""
        if isinstance(tensor, Tensor) and name in self._store.linear_names:
            return self._lay_out(tensor)
        return tensor

    def _read(self, part: str) -> dict[str, Tensor]:
        """Tensors of a part from disk; begins to read the next one."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.part is not self._streamed[part]:
            ahead.wait()  # read in vain; its buffer is needed
            ahead = None
        reading = ahead or self._begin(part)
        if self._overlap:
            # Before waiting, so that the disk has more to do when this one ends: whoever fetches
            # a part has done with the one before, whose buffer this takes.
            following = self._order[(self._order.index(part) + 1) % len(self._order)]
            self._ahead = self._begin(following)
        with self._waiting.for_disk():
            return reading.finish()

    def _begin(self, part: str) -> Reading:
        self._buffers.reverse()
        return Reading(self._streamed[part], self._buffers[0], self._reader)
