"""What requests cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a request cost, or all those of a run.

    What a pass cost is divided among the requests it served, by tokens.
    """

    computed_prompt_tokens: float
    """Prompt tokens computed. One that was computed once for several requests counts in equal
    shares, so that the sum over requests is what the model computed."""

    padding_rows: float
    """Rows of matrix products with weights that held no token, in part."""

    decode_rows: int
    """Rows of such matrix products in decode, per linear layer: one a token and pass."""

    decode_products: float
    """Number of these matrix products: 1/n for each of n rows of a product, so that rows over
    products is the mean number of rows."""

    prefill_s: float
    """Seconds of prefill."""

    decode_s: float
    """Seconds of decode."""

    cache_bytes: int
    """Bytes of KV cache held when each request finished, summed; 0 if none was needed."""

    cached_tokens: int
    """Tokens whose keys and values those bytes hold."""

    peak_memory_bytes: int
    """Largest memory use of the process (on CUDA: of the device) seen until they finished."""

    prefill_peak_bytes: int | None = None
    """Of it, what was seen until their prompts were computed: decode has added the rest."""

    peak_host_bytes: int | None = None
    """Largest memory use of the process where `peak_memory_bytes` is that of a device."""

    peak_disk_bytes: int = 0
    """Most bytes that KV cache and activations took on disk until they finished."""

    disk_wait_s: float = 0.0
    """Of `prefill_s` and `decode_s`, seconds in which computing stood still for the disk."""

    link_wait_s: float = 0.0
    """Likewise for copies to the device."""

    policy: str = ""
    """With which policy they ended, in brief; several, one after another."""

    predicted_prefill_s: float | None = None
    """What the planner said `prefill_s` would be; `None` if the machine was not calibrated, for
    any of the requests."""

    predicted_decode_s: float | None = None
    """Likewise of `decode_s`."""

    planned_memory_bytes: int | None = None
    """What `peak_memory_bytes` should not exceed by the plan of memory; `None` without a limit."""


@dataclass(frozen=True, kw_only=True)
class RequestStatistics(Statistics):
    """What one request cost."""

    num_prompt_tokens: int
    """Prompt tokens, BOS included."""

    num_generated_tokens: int
    """Tokens sampled over all completions, stop and EOS tokens included."""

    effective_batch: int
    """Sequences in the block that served it."""

    decode_to_device_bytes: int = 0
    """Copied from the host to the device in decode: of weights, its share."""
