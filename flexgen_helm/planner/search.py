"""The policy search: shapes of blocks from a grid, each with its best placement.

Around the linear program, as in the FlexGen paper (section 4.3). Shapes are taken in the order of
a bound that no placement can beat, so that most of them need not be solved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from flexgen_helm.errors import InfeasibleError
from flexgen_helm.planner.block_load import OURS, Execution, Shape
from flexgen_helm.planner.costs import Phase, Resource, phases
from flexgen_helm.planner.linear import Fractions, Linear, Variable, placement_of
from flexgen_helm.planner.memory import cache_bytes_of, limits_of, needed_bytes
from flexgen_helm.planner.placement_problem import (
    Array,
    Instance,
    Multipliers,
    PlacementProblem,
    Solution,
    Times,
)
from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.placement import Tier
from flexgen_helm.specs.policy import PLACED, Policy
from flexgen_helm.specs.workload import Workload
from flexgen_helm.units import format_bytes

MICRO_BATCH_TOKENS = (128, 512, 2048, 8192)
MICRO_BATCH_SIZES = (32, 512)
NUM_MICRO_BATCHES = (1, 4, 16, 64)

CACHED_TOKENS = tuple(round(2 ** (half / 2)) for half in range(12, 45))
"""From 64 tokens to four millions."""

CLOSE_ENOUGH = 1e-3
"""A shape that could only be better by this part is not tried."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best shape, and its placement."""

    setup: Setup
    shape: Shape
    solution: Solution
    needed: Mapping[str, Linear]
    num_shapes: int
    num_solved: int

    @property
    def policy(self) -> Policy:
        return policy_of(self.setup, self.shape, self.solution.fractions)


def policy_of(setup: Setup, shape: Shape, fractions: Fractions) -> Policy:
    """Return the policy with a shape and placements."""
    return Policy(
        micro_batch_size=shape.micro_batch_size,
        num_micro_batches=shape.num_micro_batches,
        micro_batch_tokens=shape.micro_batch_tokens,
        cache_bytes=cache_bytes_of(setup, shape),
        weights=placement_of(fractions, "weights"),
        cache=placement_of(fractions, "cache"),
        activations=placement_of(fractions, "activations"),
        attention=shape.attention,
        overlap=shape.overlap,
    )


def search(
    setup: Setup,
    hardware: Hardware,
    workload: Workload,
    budget: MemoryBudget,
    execution: Execution = OURS,
) -> Found:
    """Find the policy that takes the least time.

    Raises:
        InfeasibleError: none fits.
        UnboundedError: a rate of the hardware makes no sense.
        SolverError: the solver has failed.
    """
    limits = limits_of(setup, hardware, budget)
    candidates = _candidates(setup, hardware, workload, limits, execution)
    if not candidates:
        raise InfeasibleError(_explain(setup, workload, limits))
    instances = [candidate.instance for candidate in candidates]
    stacked = Instance.stack(instances)
    problem = PlacementProblem(len(candidates[0].phases), len(limits))
    bounds = np.max([m.bounds(stacked) for m in _first_multipliers(instances[0])], axis=0)
    bounds[_overfull(stacked)] = np.inf
    best: tuple[_Candidate, Solution] | None = None
    num_solved = 0
    while True:
        index = int(bounds.argmin())
        least = np.inf if best is None else best[1].seconds * (1 - CLOSE_ENOUGH)
        if bounds[index] >= least:
            break
        bounds[index] = np.inf
        num_solved += 1
        try:
            solution = problem.solve(instances[index])
        except InfeasibleError:
            continue
        if best is None or solution.seconds < best[1].seconds:
            best = candidates[index], solution
        bounds = np.maximum(bounds, solution.multipliers.bounds(stacked))
    if best is None:
        raise InfeasibleError(_explain(setup, workload, limits))
    found, solution = best
    return Found(
        setup=setup,
        shape=found.shape,
        solution=solution,
        needed=found.needed,
        num_shapes=len(candidates),
        num_solved=num_solved,
    )


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    shape: Shape
    phases: Sequence[Phase]
    needed: Mapping[str, Linear]
    instance: Instance


def _candidates(
    setup: Setup,
    hardware: Hardware,
    workload: Workload,
    limits: Mapping[str, float],
    execution: Execution,
) -> list[_Candidate]:
    candidates = []
    for shape in _shapes(setup, workload):
        parts = [
            phase
            for lengths in workload
            for phase in phases(setup, hardware, lengths, shape, execution)
        ]
        times = Times.of(parts)
        for on_disk in (False, True):
            placed = replace(shape, weights_on_disk=on_disk)
            needed = needed_bytes(setup, placed, workload)
            # Even if everything that can be elsewhere is.
            if any(linear.constant > limits[name] for name, linear in needed.items()):
                continue
            instance = Instance.of(times, needed, limits, _forbidden(setup, placed))
            candidates.append(
                _Candidate(shape=placed, phases=parts, needed=needed, instance=instance)
            )
    return candidates


def _first_multipliers(instance: Instance) -> Iterator[Multipliers]:
    """What to begin with: each resource on its own, and memory that is not worth anything."""
    memories = np.zeros(len(instance.free_gigabytes))
    num_phases = len(instance.overlap_losses)
    losses = np.repeat(instance.overlap_losses, len(Resource))
    for resource in range(len(Resource)):
        only = np.tile(np.arange(len(Resource)) == resource, num_phases)
        yield Multipliers(resources=losses + (1 - losses) * only, memories=memories)


def _overfull(instances: Instance) -> Array:
    """Whether stacked programs cannot be solved.

    The first so many memories are then too small for what has to be in one of them.
    """
    none = np.zeros(instances.constants.shape[-1])
    memories = np.tri(instances.free_gigabytes.shape[-1])
    return np.any(
        [Multipliers(resources=none, memories=m).bounds(instances) > 0 for m in memories], axis=0
    )


def _shapes(setup: Setup, workload: Workload) -> Iterator[Shape]:
    smaller = 0
    for cached in _cached_tokens(workload):
        for size, count in product(MICRO_BATCH_SIZES, NUM_MICRO_BATCHES):
            if smaller and _most_sequences(workload, smaller) >= size * count:
                continue  # no more of them with a larger cache
            for tokens, on_disk, attention in product(
                MICRO_BATCH_TOKENS,
                (False, True),
                ("device",) if setup.unified else ("device", "host"),
            ):
                yield Shape(
                    micro_batch_size=size,
                    num_micro_batches=count,
                    micro_batch_tokens=tokens,
                    cached_tokens=cached,
                    attention=attention,
                    cache_on_disk=on_disk,
                )
        smaller = cached


def _most_sequences(workload: Workload, cached_tokens: int) -> float:
    """Sequences of a block of the shortest requests, with so many tokens in the KV cache."""
    shortest = min(lengths.final_len for lengths in workload if lengths.decodes)
    return cached_tokens / shortest


def _cached_tokens(workload: Workload) -> Iterator[int]:
    """Sizes of the KV cache worth trying: from the longest request to all at once."""
    decoding = [lengths for lengths in workload if lengths.decodes]
    if not decoding:
        yield CACHED_TOKENS[0]
        return
    one = workload.most_cached
    everything = max(lengths.num_requests * lengths.final_len for lengths in decoding)
    yield one
    for tokens in CACHED_TOKENS:
        if tokens > one:
            yield tokens
            if tokens >= everything:
                return


def _forbidden(setup: Setup, shape: Shape) -> list[Variable]:
    forbidden: list[Variable] = []
    if setup.unified:
        forbidden += [(placed, Tier.HOST) for placed in PLACED]
    if not shape.weights_on_disk:
        forbidden.append(("weights", Tier.DISK))
    if not shape.cache_on_disk:
        forbidden.append(("cache", Tier.DISK))
    if shape.attention == "host":  # it would have to go there for every token
        forbidden.append(("cache", Tier.DEVICE))
    return forbidden


def _explain(setup: Setup, workload: Workload, limits: dict[str, float]) -> str:
    cached = min(_cached_tokens(workload))
    smallest = Shape(
        micro_batch_size=min(MICRO_BATCH_SIZES),
        num_micro_batches=1,
        micro_batch_tokens=min(MICRO_BATCH_TOKENS),
        cached_tokens=cached,
    )
    needed = needed_bytes(setup, smallest, workload)
    short = [name for name, linear in needed.items() if linear.constant > limits[name]]
    parts = [
        f"{name} memory of {format_bytes(limits[name])}, of which"
        f" {format_bytes(needed[name].constant)} are needed wherever everything else is"
        for name in short or needed
    ]
    return (
        f"no policy of this model fits: there is {'; '.join(parts)}: allow more memory, or compress"
        " the model"
    )
