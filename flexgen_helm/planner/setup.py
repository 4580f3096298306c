"""What is planned for."""

from __future__ import annotations

from dataclasses import dataclass

from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model, and how it is computed."""

    spec: ModelSpec
    compression: Compression
    dtype_bytes: int
    """Of a number in the compute dtype."""

    unified: bool
    """Whether device and host are one memory."""
