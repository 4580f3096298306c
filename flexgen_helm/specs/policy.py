"""How requests are cut up for execution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.chunks import spilled_at_once
from flexgen_helm.specs.placement import ON_DEVICE, Placement

PLACED = ("weights", "cache", "activations")
"""What has a placement."""

SIZES = ("micro_batch_size", "num_micro_batches", "micro_batch_tokens", "cache_bytes")
SWITCHES = ("share_prefixes", "overlap", "cuda_graphs")
ATTENTION = ("device", "host")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Shape of blocks, memory for them, and where weights, KV cache and activations are.

    Raises:
        InvalidSettingError: a size below 1, or a value that is none of its field's.
    """

    micro_batch_size: int = 512
    """Sequences computed together in decode."""

    num_micro_batches: int = 16
    """Micro-batches one pass over the weights serves."""

    micro_batch_tokens: int = 2048
    """Prompt tokens computed together in prefill."""

    cache_bytes: int | None = None
    """Bytes the KV cache may take; `None` for half of the memory that is free after loading."""

    share_prefixes: bool = True
    """Whether what prompts have in common is computed and stored once. Results are the same
    without; it is there to measure what sharing gains."""

    weights: Placement = ON_DEVICE
    """Where the matrices of the transformer layers are. Embeddings, norms and biases, a few percent
    of a large model, stay on the device."""

    cache: Placement = ON_DEVICE
    """Where the KV cache is: keys and values of each layer are each in one place."""

    activations: Placement = ON_DEVICE
    """Where hidden states are between two layers."""

    attention: str = "device"
    """Where sequences in decode attend to their own keys and values: on the ``device``, or on the
    ``host``, which spares the way there to a cache that is on the host or on disk."""

    overlap: bool = True
    """Whether what comes next is read, and what came before written, while a layer computes."""

    cuda_graphs: bool = True
    """Whether passes of decode that repeat are given to a GPU as one command each, where everything
    is in its memory. Results are the same without."""

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            left_out = value is None and name == "cache_bytes"
            if not left_out and (type(value) is not int or value < 1):
                raise InvalidSettingError(
                    f"{name}={value!r} is out of range: it must be at least 1, a whole number"
                )
        for name in SWITCHES:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InvalidSettingError(f"{name}={value!r} is not possible: it is true or false")
        if self.attention not in ATTENTION:
            raise InvalidSettingError(
                f"attention={self.attention!r} is not possible: it is one of {ATTENTION}"
            )

    @property
    def placements(self) -> dict[str, Placement]:
        """Where everything is that has a placement, by name."""
        return {name: getattr(self, name) for name in PLACED}

    @property
    def offloads(self) -> bool:
        """Whether anything is not on the device."""
        return any(placement != ON_DEVICE for placement in self.placements.values())

    @property
    def stays_on_device(self) -> bool:
        """Whether the device does everything, and needs nothing from elsewhere."""
        return self.attention == "device" and not self.offloads

    @property
    def spills(self) -> bool:
        """Whether anything beside weights is on disk."""
        return self.cache.disk > 0 or self.activations.disk > 0

    def spilled_at_once(self, num_layers: int, *, linked: bool) -> int:
        """Bytes of keys, or of values, of a layer that are read at once; see `chunks`."""
        return spilled_at_once(self.cache_bytes, num_layers, linked=linked)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Policy:
        """Make one of plain values, as in YAML; a placement is a mapping like ``{disk: 1}``.

        Raises:
            InvalidSettingError: they are no fields, there is no such field, or a value is out of
                range.
        """
        try:
            values = {**settings}
            for name in values.keys() & PLACED:
                values[name] = Placement(**values[name])
            return cls(**values)
        except TypeError as error:
            names = ", ".join(field.name for field in fields(cls))
            raise InvalidSettingError(
                f"policy {settings!r} is not understood ({error}): leave it out to have one"
                f" planned; it has the fields {names}, and {', '.join(sorted(PLACED))} have the"
                " fields device, host and disk"
            ) from error

    @property
    def effective_batch(self) -> int:
        """Sequences of a whole block."""
        return self.micro_batch_size * self.num_micro_batches

    @property
    def brief(self) -> str:
        """The shape of blocks, and percent on device, host and disk."""
        percent = [
            f"{name} {100 * x.device:.0f}/{100 * x.host:.0f}/{100 * x.disk:.0f}"
            for name, x in self.placements.items()
        ]
        shape = f"{self.micro_batch_size}x{self.num_micro_batches}"
        tokens = f"{self.micro_batch_tokens} tokens"
        return ", ".join([shape, tokens, *percent, f"attention on {self.attention}"])
