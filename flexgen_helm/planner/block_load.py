"""How requests are cut into blocks, and how many passes these take."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.workload import RequestLengths


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a policy is not a placement."""

    micro_batch_size: int
    num_micro_batches: int
    micro_batch_tokens: int
    cached_tokens: int
    """Tokens of a block in the KV cache, at most."""

    attention: str = "device"
    overlap: bool = True
    weights_on_disk: bool = True
    """Whether weights may be there: this takes memory."""

    cache_on_disk: bool = True
    """Likewise of the KV cache."""

    cache_limited: bool = True
    """Whether a policy says how large the KV cache may be: what is read at once depends on it."""

    captured: bool = False
    """Whether passes of decode are captured as CUDA graphs."""

    @classmethod
    def of(cls, setup: Setup, policy: Policy, cached_tokens: int) -> Shape:
        """Return that of a policy, with room for so many tokens in the KV cache."""
        return cls(
            micro_batch_size=policy.micro_batch_size,
            num_micro_batches=policy.num_micro_batches,
            micro_batch_tokens=policy.micro_batch_tokens,
            cached_tokens=cached_tokens,
            attention=policy.attention,
            overlap=policy.overlap,
            weights_on_disk=policy.weights.disk > 0,
            cache_on_disk=policy.cache.disk > 0,
            cache_limited=policy.cache_bytes is not None,
            captured=setup.captures_decode(policy),
        )

    @property
    def rows(self) -> int:
        """Prompt tokens of a pass, at most."""
        return self.micro_batch_tokens * self.num_micro_batches


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What a system does that another does not."""

    attends_to_all: bool = False
    """Whether scores that the causal mask hides are computed, too."""

    dequantizes_each: bool = False
    """Whether each micro-batch dequantizes the weights of a layer, and not each pass."""

    prefills_at_once: bool = False
    """Whether all prompts of a block are computed in one pass."""

    caches_one_token: bool = False
    """Whether keys and values are stored of requests that need only their first token."""

    computes_last_rows: bool = False
    """Whether the last layer computes rows whose result nobody reads."""

    reads_what_there_is: bool = False
    """Whether keys and values are read up to the last, and not with the room for those to come."""

    stores_in_order: bool = False
    """Whether those of new tokens are on disk where they belong; the last are put in order whenever
    they are read otherwise."""


OURS = Execution()
UPSTREAM = Execution(
    attends_to_all=True,
    dequantizes_each=True,
    prefills_at_once=True,
    caches_one_token=True,
    computes_last_rows=True,
    reads_what_there_is=True,
    stores_in_order=True,
)
"""FlexGen 0.1.8; it also pads prompts and shares nothing."""


@dataclass(frozen=True, kw_only=True)
class BlockLoad:
    """What the blocks of some requests have to do, on average."""

    num_blocks: int
    sequences: float
    """Requests of a block."""

    prompt_tokens: float
    """Prompt tokens a block computes."""

    prefill_passes: int
    decode_passes: int

    @property
    def decode_tokens(self) -> float:
        """Tokens of all blocks that are computed in decode."""
        return self.num_blocks * self.decode_passes * self.sequences

    @property
    def passes_with_decode(self) -> int:
        """Passes of all blocks in which anything is in decode.

        Where prompts take several passes, sequences begin and end one pass after another, and those
        of the next block begin as these end.
        """
        if not self.decode_passes:
            return 0
        least, most = sorted((self.prefill_passes, self.decode_passes))
        return self.num_blocks * most + least - 1

    @property
    def decoding(self) -> float:
        """Sequences in decode in such a pass, on average."""
        return self.decode_tokens / max(1, self.passes_with_decode)

    @classmethod
    def of(cls, lengths: RequestLengths, shape: Shape, execution: Execution) -> BlockLoad:
        """Work out how requests are cut into blocks; see `batching.blocks`."""
        keeps = lengths.decodes or execution.caches_one_token
        most = float(lengths.num_requests)
        if keeps:
            cached = lengths.own_len + max(0, lengths.new_tokens - 1)
            most = min(most, shape.micro_batch_size * shape.num_micro_batches)
            most = max(1.0, min(most, shape.cached_tokens / cached))
        num_blocks = ceil(lengths.num_requests / most)
        sequences = lengths.num_requests / num_blocks
        prompt_tokens = sequences * lengths.own_len
        passes = 1 if execution.prefills_at_once else ceil(prompt_tokens / shape.rows)
        return cls(
            num_blocks=num_blocks,
            sequences=sequences,
            prompt_tokens=prompt_tokens,
            prefill_passes=passes,
            decode_passes=max(0, lengths.new_tokens - 1),
        )
