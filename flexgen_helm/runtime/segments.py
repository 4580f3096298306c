"""Keys and values that several sequences read: of one pass, of decode, or of a later block."""

from __future__ import annotations

import torch

from flexgen_helm.model.cache_format import CacheFormat
from flexgen_helm.model.kv_cache import KeysByHead, SegmentCache


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
        self._computed: KeysByHead | None = None

    def write(self, layer: int, new: KeysByHead) -> None:
        """Take the keys and values of a layer, both [h, t, d]."""
        self._computed = new
        for cache in {id(c): c for c in (self.cache, self._raw) if c is not None}.values():
            cache.write(layer, new)

    def computed(self, layer: int) -> KeysByHead:
        """Keys and values as computed: of the layer written last, or of any if they are kept."""
        return self.kept(layer) if self._computed is None else self._computed

    def forget_computed(self) -> None:
        """Be told that no other row of a layer reads what was written last."""
        self._computed = None

    def kept(self, layer: int) -> KeysByHead:
        """Keys and values of any layer as computed, of a segment made to keep them."""
        assert self._raw is not None, "what was not computed in this pass has been kept"
        return self._raw.read(layer)

    def end_prefill(self) -> None:
        """Let go of what only prefill reads."""
        self._computed = self._raw = None


class KeptPrefix:
    """Beginning of a prompt that a later block shares: raw keys and values, last hidden states."""

    def __init__(self, layers: list[KeysByHead], hidden: torch.Tensor) -> None:
        self._layers = layers
        self.hidden = hidden
        """Output of the last layer at each of its positions [t, e]."""

    @property
    def num_tokens(self) -> int:
        return len(self.hidden)

    @classmethod
    def join(cls, segments: list[Segment], hidden: torch.Tensor, num_layers: int) -> KeptPrefix:
        """Make one of consecutive segments that hold the raw keys and values of all layers."""
        layers = [
            KeysByHead.join([segment.kept(layer) for segment in segments])
            for layer in range(num_layers)
        ]
        return cls(layers, hidden)

    def segment(
        self, start: int, stop: int, cache_format: CacheFormat, *, decodes: bool
    ) -> Segment:
        """Part of it as a segment of another block."""
        raw = self._store(start, stop, cache_format.uncompressed)
        if not decodes:
            return Segment(stop - start, None, raw)
        same = not cache_format.compressed and not cache_format.tiers
        return Segment(stop - start, raw if same else self._store(start, stop, cache_format), raw)

    def _store(self, start: int, stop: int, cache_format: CacheFormat) -> SegmentCache:
        cache = SegmentCache(cache_format, stop - start)
        for layer, kept in enumerate(self._layers):
            cache.write(layer, kept.slice(start, stop))
        return cache
