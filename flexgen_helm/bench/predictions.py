"""What the planner says of requests of one length, beside what benchmarks measure of them."""

from __future__ import annotations

from flexgen_helm.planner import plan as planner
from flexgen_helm.planner.block_load import OURS, Execution
from flexgen_helm.planner.plan import Plan
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.workload import RequestLengths, Workload


def predicted(
    spec: ModelSpec,
    compression: str,
    hardware: Hardware,
    lengths: RequestLengths,
    policy: Policy,
    *,
    execution: Execution = OURS,
) -> Plan:
    """Return what a policy takes, with room for all of them in the KV cache."""
    return planner.predict(
        spec,
        Compression.parse(compression),
        hardware,
        _workload(lengths),
        policy,
        cached_tokens=lengths.num_requests * (lengths.max_prompt_len + lengths.new_tokens),
        execution=execution,
    )


def planned(spec: ModelSpec, compression: str, hardware: Hardware, lengths: RequestLengths) -> Plan:
    """Return what is planned for them."""
    return planner.plan(spec, [Compression.parse(compression)], hardware, _workload(lengths))


def _workload(lengths: RequestLengths) -> Workload:
    return Workload(name=lengths.name, scenarios=(lengths,))
