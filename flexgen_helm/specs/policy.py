"""How requests are cut up for execution."""

from __future__ import annotations

from dataclasses import dataclass

from flexgen_helm.errors import InvalidSettingError


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Shape of blocks, and memory for them. Placement over tiers comes with offloading.

    Raises:
        InvalidSettingError: a size below 1.
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

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "num_micro_batches", "micro_batch_tokens", "cache_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidSettingError(
                    f"{name}={value!r} is out of range: it must be at least 1"
                )

    @property
    def effective_batch(self) -> int:
        """Sequences of a whole block."""
        return self.micro_batch_size * self.num_micro_batches
