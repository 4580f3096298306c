"""Where a pool keeps the keys, or the values, of one layer."""

from __future__ import annotations

import torch

from flexgen_helm.model.cache_format import HOST, CacheFormat
from flexgen_helm.model.cache_storage.base import CacheStorage, StorageSize
from flexgen_helm.model.cache_storage.disk import DiskStorage
from flexgen_helm.model.cache_storage.linked import LinkedStorage
from flexgen_helm.model.cache_storage.memory import MemoryStorage
from flexgen_helm.offload.records import RecordLayout
from flexgen_helm.specs.placement import Tier


def make_storage(
    cache_format: CacheFormat, tier: Tier, num_slots: int, size: StorageSize
) -> CacheStorage:
    """Return storage on a tier."""
    link = cache_format.link
    storage: MemoryStorage | DiskStorage
    if tier is Tier.DISK:
        assert cache_format.spill is not None, "a cache on disk comes with a spill"
        storage = DiskStorage(cache_format, num_slots, size, cache_format.spill)
    else:
        layouts = cache_format.layout(num_slots, size.capacity)
        record = RecordLayout(layouts)
        if tier is Tier.HOST and link is not None:
            # Pinned when it is needed, by the thread that stores, while the device computes.
            storage = MemoryStorage(
                cache_format, record, HOST, lambda: record.views(link.buffer(record.num_bytes))
            )
        else:
            device = cache_format.device
            tensors = [torch.zeros(x.shape, dtype=x.dtype, device=device) for x in layouts]
            storage = MemoryStorage(cache_format, record, device, lambda: tensors)
    return (
        storage
        if link is None or tier is Tier.DEVICE
        else LinkedStorage(cache_format, storage, link)
    )
