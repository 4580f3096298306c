"""Keys and values that several sequences read: of one pass, of decode, or of a later block."""

from __future__ import annotations

import torch

from flexgen_helm.model.kv_cache import CacheFormat, KeysValues, SegmentCache


class Segment:
    """Keys and values of a run of tokens that many rows attend to.

    Prefill attends to them as they were computed, decode to what the cache stores, as with every
    other position: what a request gets does not depend on which of its tokens were shared.

    Args:
        num_tokens: t.
        cache: for decode; `None` if no sequence below will decode.
        raw: for blocks to come, uncompressed; `None` if none needs it. May be `cache` itself.
    """

    def __init__(
        self, num_tokens: int, cache: SegmentCache | None, raw: SegmentCache | None
    ) -> None:
        self.num_tokens = num_tokens
        self.cache = cache
        self._raw = raw
        self._computed: KeysValues | None = None

    def write(self, layer: int, new: KeysValues) -> None:
        """Take the keys and values of a layer, both [t, e]."""
        self._computed = new
        for cache in {id(c): c for c in (self.cache, self._raw) if c is not None}.values():
            cache.write(layer, new)

    def computed(self, layer: int) -> KeysValues:
        """Keys and values as computed: of the layer written last, or of any if they are kept."""
        if self._computed is not None:
            return self._computed
        assert self._raw is not None, "what was not computed in this pass has been kept"
        return self._raw.read(layer)

    def kept(self, layer: int) -> KeysValues:
        """Keys and values of any layer as computed, of a segment made to keep them."""
        assert self._raw is not None, "the segment was not made for later blocks"
        return self._raw.read(layer)

    def end_prefill(self) -> None:
        """Let go of what only prefill reads."""
        self._computed = self._raw = None


class KeptPrefix:
    """Beginning of a prompt that a later block shares: raw keys and values, last hidden states."""

    def __init__(self, cache: SegmentCache, hidden: torch.Tensor) -> None:
        self._cache = cache
        self.hidden = hidden
        """Output of the last layer at each of its positions [t, e]."""

    @property
    def num_tokens(self) -> int:
        return self._cache.num_tokens

    @classmethod
    def join(
        cls, segments: list[Segment], hidden: torch.Tensor, cache_format: CacheFormat
    ) -> KeptPrefix:
        """Make one of consecutive segments that hold the raw keys and values of all layers."""
        cache = SegmentCache(cache_format.uncompressed, len(hidden))
        for layer in range(cache_format.spec.num_layers):
            parts = [segment.kept(layer) for segment in segments]
            keys, values = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            cache.write(layer, KeysValues(keys, values))
        return cls(cache, hidden)

    def segment(
        self, start: int, stop: int, cache_format: CacheFormat, *, decodes: bool
    ) -> Segment:
        """Part of it as a segment of another block."""
        raw = self._cache.slice(start, stop)
        if not decodes:
            return Segment(stop - start, None, raw)
        if not cache_format.compressed:
            return Segment(stop - start, raw, raw)
        cache = SegmentCache(cache_format, stop - start)
        for layer in range(cache_format.spec.num_layers):
            cache.write(layer, raw.read(layer))
        return Segment(stop - start, cache, raw)
