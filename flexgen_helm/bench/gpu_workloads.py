"""What `bench gpu` runs: requests like those of the paper, and upstream's published policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexgen_helm.bench.trial import UniformWorkload
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.opt_sizes import known_spec
from flexgen_helm.specs.shipped import flexgen_paper, scenarios_dir
from flexgen_helm.specs.workload import RequestLengths, Workload

LEAST_REQUESTS = 4
"""Of a sub-scenario, however few are wanted."""

UPSTREAM_BYTES = 18 << 30
"""Of the host's memory, what upstream takes beside weights and cache: pinned memory of 2 GB for
each of its four threads that copy, its copies of the batch's activations and, where the host
attends, float32 copies of keys and values; and what CUDA takes in a process."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Prompts of random tokens: some with a beginning in common, all with an end of their own."""

    name: str
    count: int
    shared: int
    """Tokens in common."""

    least_own: int
    most_own: int
    """Tokens of their own, of lengths spread evenly in between."""

    new_tokens: int

    @property
    def prompt_len(self) -> int:
        """Mean tokens of a prompt."""
        return self.shared + (self.least_own + self.most_own) // 2


@dataclass(frozen=True, kw_only=True)
class PublishedPolicy:
    """A policy of upstream's benchmark suite."""

    name: str
    batch: int
    options: Sequence[str]


def published_policies(
    model: str, workload: UniformWorkload, *, host_bytes: int
) -> Iterator[PublishedPolicy]:
    """Yield upstream's policies for a model and a length, or for the length they are nearest to.

    With fewer batches than published where the host has no memory for their keys and values, and
    none of a policy of which not even one fits.

    Args:
        model: such as ``30b``.
        workload: lengths of prompts and completions.
        host_bytes: memory of the host.
    """
    cells = [c for c in flexgen_paper()["throughput"] if c["model"] == f"facebook/opt-{model}"]
    if not cells:
        return
    nearest = min(abs(cell["prompt_len"] - workload.prompt_len) for cell in cells)
    for cell in cells:
        if abs(cell["prompt_len"] - workload.prompt_len) > nearest:
            continue
        policy = cell["policy"]
        size, published = policy["micro_batch_size"], policy["num_micro_batches"]
        count = min(published, _most_batches(cell, workload, host_bytes))
        if not count:
            continue
        percent = [
            str(round(100 * policy[placed][tier]))
            for placed in ("weights", "cache", "activations")
            for tier in ("device", "host")
        ]
        options = ["--gpu-batch-size", str(size), "--num-gpu-batches", str(count)]
        options += ["--percent", *percent]
        if policy["attention"] == "host":
            options.append("--cpu-cache-compute")
        bits = cell["compression"].split("-")
        options += ["--compress-weight"] * ("w4" in bits) + ["--compress-cache"] * ("kv4" in bits)
        fewer = "" if count == published else f" of {size}x{published}"
        yield PublishedPolicy(
            name=f"{size}x{count}{fewer} {cell['compression']}",
            batch=size * count,
            options=options,
        )


def _most_batches(cell: Mapping[str, Any], workload: UniformWorkload, host_bytes: int) -> int:
    """Batches of a published policy that the host has memory for."""
    spec, policy = known_spec(cell["model"]), cell["policy"]
    assert spec is not None, "the paper's models are known"
    compression = Compression.parse(cell["compression"])
    weights = pinned_weight_bytes(spec, compression) * policy["weights"]["host"]
    cached = policy["micro_batch_size"] * (workload.prompt_len + workload.new_tokens)
    each = policy["cache"]["host"] * spec.cache_bytes(compression, num_tokens=cached, dtype_bytes=2)
    left = max(0, host_bytes - UPSTREAM_BYTES - weights)
    return int(left // each) if each else policy["num_micro_batches"]


def pinned_weight_bytes(spec: ModelSpec, compression: Compression) -> float:
    """Return what all weights take in pinned memory, which PyTorch takes by powers of two."""
    plain_bytes = [2 * out * in_ for out, in_ in spec.linear_shapes.values()]
    rounded = sum(1 << (num_bytes - 1).bit_length() for num_bytes in plain_bytes)
    stored = spec.linear_weight_bytes(compression, dtype_bytes=2)
    return stored * rounded / sum(plain_bytes)


def helm_requests(share: float) -> Iterator[Requests]:
    """Yield the seven sub-scenarios as their prompts are, each with a part of its requests."""
    for lengths, cell in _paper_seven():
        own = max(1, round(lengths.own_len))
        spread = min(own - 1, lengths.max_prompt_len - round(lengths.prompt_len))
        yield Requests(
            name=lengths.name,
            count=_count(cell, share),
            shared=round(lengths.prompt_len) - own,
            least_own=own - spread,
            most_own=own + spread,
            new_tokens=lengths.new_tokens,
        )


def padded_requests(share: float) -> Iterator[Requests]:
    """Yield as many requests as `helm_requests` does, as upstream runs them."""
    for lengths, cell in _paper_seven():
        yield Requests(
            name=lengths.name,
            count=_count(cell, share),
            shared=0,
            least_own=cell["prompt_len"],
            most_own=cell["prompt_len"],
            new_tokens=cell["new_tokens"],
        )


def _paper_seven() -> Iterator[tuple[RequestLengths, Mapping[str, Any]]]:
    text = (scenarios_dir() / "paper_7.lengths.json").read_text()
    lengths = Workload.from_json(text, where="paper_7.lengths.json")
    yield from zip(lengths, flexgen_paper()["helm"]["rows"], strict=True)


def _count(cell: Mapping[str, Any], share: float) -> int:
    return max(LEAST_REQUESTS, round(share * cell["num_requests"]))
