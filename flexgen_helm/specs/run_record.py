"""What a run cost: the file our runner adds to a HELM run directory, and our tables read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from flexgen_helm.specs.request import EngineDescription
from flexgen_helm.specs.statistics import RequestStatistics, Statistics

RUN_RECORD_FILE = "flexgen_run.json"
"""Name of the file, beside HELM's own ``stats.json``."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(Statistics):
    """One run's engine and the cost of its requests, summed.

    It is made from what each request reported when it was computed, so a run answered from HELM's
    request cache has the same record as the run that filled the cache. Equal requests are computed
    once, and their cost counts once.
    """

    engine: EngineDescription
    """What computed the results."""

    requests: int
    """Requests of the run, equal ones too."""

    prompt_tokens: int
    """Prompt tokens requested, by equal requests too."""

    generated_tokens: int
    """Tokens generated over all completions."""

    effective_batch: float
    """Mean over what was computed of the sequences in the block that served it."""

    @classmethod
    def summarise(
        cls,
        engine: EngineDescription,
        statistics: Sequence[RequestStatistics],
        counts: Sequence[int],
    ) -> RunRecord:
        """Add up what the requests of a run reported.

        Args:
            engine: what computed them.
            statistics: one for all requests that are equal, at least one.
            counts: how many these are.
        """
        asked = zip(counts, statistics, strict=True)
        return cls(
            engine=engine,
            requests=sum(counts),
            prompt_tokens=sum(count * s.num_prompt_tokens for count, s in asked),
            generated_tokens=sum(s.num_generated_tokens for s in statistics),
            computed_prompt_tokens=sum(s.computed_prompt_tokens for s in statistics),
            padding_rows=sum(s.padding_rows for s in statistics),
            decode_rows=sum(s.decode_rows for s in statistics),
            decode_products=sum(s.decode_products for s in statistics),
            effective_batch=sum(s.effective_batch for s in statistics) / len(statistics),
            prefill_s=sum(s.prefill_s for s in statistics),
            decode_s=sum(s.decode_s for s in statistics),
            cache_bytes=sum(s.cache_bytes for s in statistics),
            cached_tokens=sum(s.cached_tokens for s in statistics),
            peak_memory_bytes=max(s.peak_memory_bytes for s in statistics),
            prefill_peak_bytes=_largest([s.prefill_peak_bytes for s in statistics]),
            peak_host_bytes=_largest([s.peak_host_bytes for s in statistics]),
            peak_disk_bytes=max(s.peak_disk_bytes for s in statistics),
            disk_wait_s=sum(s.disk_wait_s for s in statistics),
            link_wait_s=sum(s.link_wait_s for s in statistics),
            policy="; ".join(dict.fromkeys(s.policy for s in statistics if s.policy)),
            predicted_prefill_s=_sum([s.predicted_prefill_s for s in statistics]),
            predicted_decode_s=_sum([s.predicted_decode_s for s in statistics]),
            planned_memory_bytes=_largest([s.planned_memory_bytes for s in statistics]),
        )

    @property
    def throughput(self) -> float:
        """Generated tokens per second of prefill and decode; 0 where nothing was generated."""
        seconds = self.prefill_s + self.decode_s
        return self.generated_tokens / seconds if seconds > 0 else 0.0

    @property
    def unique_ratio(self) -> float:
        """Prompt tokens computed over prompt tokens requested."""
        return self.computed_prompt_tokens / self.prompt_tokens

    @property
    def mean_decode_rows(self) -> float | None:
        """Mean rows of a matrix product in decode; `None` where nothing was decoded."""
        return self.decode_rows / self.decode_products if self.decode_products else None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        fields = json.loads(text)
        return cls(**{**fields, "engine": EngineDescription(**fields["engine"])})


def _sum(values: Sequence[float | None]) -> float | None:
    """Add up what is known, if all of it is."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _largest(values: Sequence[int | None]) -> int | None:
    """Return the largest of what is known, if anything is."""
    return max((value for value in values if value is not None), default=None)
