"""The seam between HELM and whatever computes: what an engine must do, and how one is made.

Three backends implement it: `runtime_backend.RuntimeBackend`, which runs models,
`engine_process.ProcessBackend`, which has it do so in another process, and `fake.FakeBackend`,
which makes results up. A deployment names its backend by class path, so that a
test, or a user's `prod_env`, can choose another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flexgen_helm.errors import FlexGenError
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import EngineDescription, GenerationRequest, GenerationResult

DEFAULT_BACKEND = "flexgen_helm.adapter.engine_process.ProcessBackend"

OnResult = Callable[[int, GenerationResult], None]
"""Called with the index of a request and its result."""

OnError = Callable[[int, FlexGenError], None]
"""Called with the index of a request that cannot be served, and why."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Everything that is needed to build an engine."""

    checkpoint: str
    """Hub id or directory."""

    compression: str = "none"
    """Compression label."""

    dtype: str = "auto"
    """Compute dtype."""

    device: str = "auto"
    """Compute device."""

    policy: Policy | None = None
    """Shape of blocks, and where everything is; `None` for what fits the budget."""

    budget: MemoryBudget = field(default_factory=MemoryBudget)
    """Memory that may be used."""

    offload_dir: str | None = None
    """Where weight stores are; `None` leaves it to the engine."""

    backend: str = DEFAULT_BACKEND
    """Class path of the `Backend`."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What fixes an engine's output, known without loading it."""

    fingerprint: str
    """Digest of the checkpoint's files."""

    compression: str
    """Compression label in its normal form."""

    dtype: str
    """Compute dtype; never ``auto``."""


class GenerationEngine(Protocol):
    """What the adapter needs of an engine. One call of `generate` at a time."""

    @property
    def description(self) -> EngineDescription: ...

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        on_result: OnResult | None = None,
        on_error: OnError | None = None,
    ) -> list[GenerationResult]:
        """Return results in the order of the requests; hand each to `on_result` once known.

        Those that cannot be served are told to `on_error`, and have no result; without it none is
        served.
        """

    def close(self) -> None:
        """Give back memory. The engine is not used afterwards."""


class Backend(Protocol):
    """Makes engines."""

    def identify(self, settings: EngineSettings) -> Identity:
        """Work out what would be loaded, without loading it."""

    def begin_load(self, settings: EngineSettings) -> None:
        """Begin what `load` will end, if other calls can go on meanwhile; else do nothing."""

    def load(self, settings: EngineSettings) -> GenerationEngine:
        """Build the engine."""
