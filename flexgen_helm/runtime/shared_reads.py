"""What several micro-batches of a pass attend to is read once in each layer, for all of them."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from itertools import accumulate

from flexgen_helm.model.kv_cache import KeysByHead, SegmentCache


class SharedReads:
    """Keeps what is read of segments until the last micro-batch of a pass has it, layer by layer.

    Nothing comes from the disk, passes the link or is dequantized more than once that way.

    Args:
        most_tokens: of the segments whose keys and values of a layer are kept at a time; those with
            the most readers are. Of the others, each micro-batch reads its own.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._caches: dict[int, SegmentCache] = {}
        self._num_readers: Counter[int] = Counter()
        self._begun: set[tuple[int, int]] = set()
        """Caches and layers that are being read for the first reader."""
        self._kept: dict[int, KeysByHead] = {}
        self._num_read: Counter[int] = Counter()
        """Readers that have had the present layer."""

    def add_reader(self, cache: SegmentCache) -> None:
        """Be told that a micro-batch will read a cache, once in each layer."""
        self._caches[id(cache)] = cache
        self._num_readers[id(cache)] += 1

    def begin(self, cache: SegmentCache, layer: int) -> int:
        """Begin what `read` will wait for; return the bytes of memory this takes."""
        if id(cache) in self._shared:
            if (id(cache), layer) in self._begun:
                return 0
            self._begun.add((id(cache), layer))
        return cache.begin_read(layer)

    def read(self, cache: SegmentCache, layer: int) -> KeysByHead:
        """Return all positions of a layer, both [h, t, d], in the compute dtype."""
        key = id(cache)
        if key not in self._shared:
            return cache.read(layer)
        self._num_read[key] += 1
        both = self._kept.pop(key, None) or cache.read(layer)
        if self._num_read[key] < self._num_readers[key]:
            self._kept[key] = both
        else:
            del self._num_read[key]
            self._begun.discard((key, layer))
        return both

    @cached_property
    def _shared(self) -> set[int]:
        """Caches that are kept: as many as may be, those with the most readers first."""
        most_read = [key for key, readers in self._num_readers.most_common() if readers > 1]
        tokens = accumulate(self._caches[key].num_tokens for key in most_read)
        return {
            key for key, kept in zip(most_read, tokens, strict=True) if kept <= self._most_tokens
        }
