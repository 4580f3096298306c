"""A trial on a GPU, what its process reports, and the row this makes in a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from flexgen_helm.bench.gpu_workloads import Requests
from flexgen_helm.bench.report import Row

OURS, UPSTREAM, ACCELERATE = "flexgen_helm", "flexgen", "accelerate"

PILOT_TOKENS = 4
"""New tokens that accelerate is timed with: each takes as long as the one before."""

UPSTREAM_TOKENS = 8
"""New tokens that upstream is timed with; it projects the rest from these, by a rule of its own."""

DERIVED = ("seconds", "tokens_per_s", "link_bytes_per_s")
"""What follows from an outcome's other figures."""


@dataclass(frozen=True, kw_only=True)
class GpuTrial:
    """What one process is to measure."""

    stage: str
    system: str
    setting: str
    model: str
    """A size, such as ``30b``."""

    requests: Sequence[Requests]
    cap_bytes: int
    in_turn: bool = False
    """Whether each kind of requests waits for the one before, as if they were runs of their own."""

    compression: str = "none"
    """Of ours."""

    options: Sequence[str] = ()
    """Of upstream's command line."""


@dataclass(frozen=True, kw_only=True)
class GpuOutcome:
    """What its process reports."""

    prefill_s: float
    decode_s: float
    generated_tokens: int
    allocated_bytes: int
    """Peak of what tensors took on the device."""

    reserved_bytes: int
    """Peak of what the process took there for tensors."""

    host_bytes: int | None = None
    """Peak of what the process took on the host, libraries and what reads files included."""

    allocation_retries: int | None = None
    """How often there was no memory until all that was kept for reuse had been given back."""

    decode_to_device_bytes: int | None = None
    """Copied from the host to the device in decode, which is where a link may be the limit."""

    link_wait_s: float | None = None
    predicted_s: float | None = None
    policy: str = ""

    @property
    def seconds(self) -> float:
        """Time of prefill and decode."""
        return self.prefill_s + self.decode_s

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second."""
        return self.generated_tokens / self.seconds

    @property
    def link_bytes_per_s(self) -> float | None:
        """Copied to the device in a second of decode, in the mean."""
        copied = self.decode_to_device_bytes
        return copied / self.decode_s if copied and self.decode_s else None

    def figures(self) -> Row:
        """Return what was reported, and what follows from it."""
        return {**asdict(self), **{name: getattr(self, name) for name in DERIVED}}


@dataclass(frozen=True, kw_only=True)
class GpuRow:
    """A trial and its outcome, if it came to one."""

    stage: str
    system: str
    setting: str
    model: str
    requests: int
    prompt_len: int
    new_tokens: int
    cap_bytes: int
    outcome: GpuOutcome | None = None
    problem: str = ""
    """Why there is no outcome."""

    unfinished: bool = False
    """Whether there might have been one with more time."""

    def flat(self) -> Row:
        """Return everything there is to know, the outcome's figures among it."""
        about = {name: value for name, value in vars(self).items() if name != "outcome"}
        return {**about, **(self.outcome.figures() if self.outcome else {})}
