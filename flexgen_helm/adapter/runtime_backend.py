"""The backend that runs models. Imports torch only when asked to do something."""

from __future__ import annotations

from flexgen_helm.adapter.backend import EngineSettings, GenerationEngine, Identity
from flexgen_helm.specs.compression import Compression


class RuntimeBackend:
    """Makes `flexgen_helm.runtime.engine.Engine`s."""

    def identify(self, settings: EngineSettings) -> Identity:
        from flexgen_helm.model.checkpoint import fingerprint, resolve
        from flexgen_helm.model.dtypes import resolve_dtype

        return Identity(
            fingerprint=fingerprint(resolve(settings.checkpoint)),
            compression=Compression.parse(settings.compression).label,
            dtype=resolve_dtype(settings.dtype, settings.device),
        )

    def begin_load(self, settings: EngineSettings) -> None:
        pass

    def load(self, settings: EngineSettings) -> GenerationEngine:
        from flexgen_helm.runtime.engine import Engine

        return Engine.from_pretrained(
            settings.checkpoint,
            compression=Compression.parse(settings.compression),
            dtype=settings.dtype,
            device=settings.device,
            policy=settings.policy,
            budget=settings.budget,
            offload_dir=settings.offload_dir,
        )
