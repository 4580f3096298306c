"""The linear program that places weights, KV cache and activations (FlexGen paper, section 4.3).

For a given shape of blocks, it chooses the nine fractions so that the work takes the least time:
each phase takes as long as its busiest resource, and a part of what the others take. What is on a
tier must fit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import cvxpy as cp
import numpy as np

from flexgen_helm.errors import InfeasibleError, SolverError, UnboundedError
from flexgen_helm.planner.costs import Phase, Resource
from flexgen_helm.planner.linear import VARIABLES, Fractions, Linear, Variable, total
from flexgen_helm.specs.placement import Tier
from flexgen_helm.specs.policy import PLACED

GB = 10**9
"""Memory is given to the solver in GB, so that its numbers are of similar size."""

NO_LIMIT_GB = 1e6


Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Times(NamedTuple):
    """What phases take. Shape letters as in `Instance`."""

    slopes: Array
    constants: Array
    overlap_losses: Array

    @classmethod
    def of(cls, phases: Sequence[Phase]) -> Times:
        """Put together the numbers of all scenarios' phases."""
        rows = [total(terms) for phase in phases for terms in phase.terms.values()]
        return cls(
            slopes=np.array([_vector(row) for row in rows]),
            constants=np.array([row.constant for row in rows]),
            overlap_losses=np.array([phase.overlap_loss for phase in phases]),
        )


@dataclass(frozen=True, kw_only=True)
class Instance:
    """The numbers of the program for one shape of blocks.

    Shape letters: p phases, r resources, m memories, 9 fractions.
    """

    slopes: Array
    """Seconds [p * r, 9]."""

    constants: Array
    """Seconds [p * r], wherever everything is."""

    overlap_losses: Array
    """[p]"""

    gigabytes: Array
    """[m, 9]"""

    free_gigabytes: Array
    """[m]; what is left of what there is."""

    allowed: Array
    """[9], 0 where something may not be."""

    @classmethod
    def stack(cls, instances: Sequence[Instance]) -> Instance:
        """Return several of the same size as one, with an axis in front."""
        return cls(
            **{
                item.name: np.stack([getattr(instance, item.name) for instance in instances])
                for item in fields(cls)
            }
        )

    @classmethod
    def of(
        cls,
        times: Times,
        needed: Mapping[str, Linear],
        limits: Mapping[str, float],
        forbidden: Collection[Variable],
    ) -> Instance:
        """Put together the numbers.

        Args:
            times: of all scenarios' phases.
            needed: bytes of each memory.
            limits: bytes there are.
            forbidden: where something may not be.
        """
        return cls(
            **times._asdict(),
            gigabytes=np.array([_vector(linear) for linear in needed.values()]) / GB,
            free_gigabytes=np.array(
                [
                    min(NO_LIMIT_GB, (limits[name] - linear.constant) / GB)
                    for name, linear in needed.items()
                ]
            ),
            allowed=np.array([float(variable not in forbidden) for variable in VARIABLES]),
        )


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Of the constraints of a program: what its least time would change by."""

    resources: Array
    """[p * r]; with what a phase loses by overlapping, so that those of a phase add up to at least
    1."""

    memories: Array
    """Seconds that a GB more would save [m]."""

    def bounds(self, instances: Instance) -> Array:
        """Return, for stacked programs, times that no placement can be below (weak duality).

        They hold whatever the multipliers are, and are close where those are nearly right.
        """
        each = self.resources @ instances.slopes + self.memories @ instances.gigabytes
        each = np.where(instances.allowed > 0, each, np.inf)
        placed = each.reshape(*each.shape[:-1], len(PLACED), len(Tier)).min(axis=-1).sum(axis=-1)
        constants = instances.constants @ self.resources
        return placed + constants - instances.free_gigabytes @ self.memories


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best placement for a shape of blocks."""

    fractions: Fractions
    seconds: float
    multipliers: Multipliers


class PlacementProblem:
    """The program for so many phases; it is compiled once, and solved for many shapes.

    Args:
        num_phases: of all scenarios.
        num_memories: what has a limit.
    """

    def __init__(self, num_phases: int, num_memories: int) -> None:
        num_rows, num_fractions = num_phases * len(Resource), len(VARIABLES)
        fractions = cp.Variable(num_fractions, nonneg=True, name="fractions")
        longest = cp.Variable(num_phases, name="longest_s")
        self._fractions = fractions
        self._slopes = cp.Parameter((num_rows, num_fractions))
        self._constants = cp.Parameter(num_rows)
        self._summed = cp.Parameter(num_fractions)
        self._overlapped = cp.Parameter(num_phases)
        self._gigabytes = cp.Parameter((num_memories, num_fractions))
        self._free = cp.Parameter(num_memories)
        self._allowed = cp.Parameter(num_fractions, nonneg=True)
        each = np.kron(np.eye(num_phases), np.ones((len(Resource), 1)))
        whole = np.kron(np.eye(len(PLACED)), np.ones((1, len(Tier))))
        self._constraints = {
            "a phase takes as long as each resource": each @ longest
            >= self._slopes @ fractions + self._constants,
            "what is on a tier fits": self._gigabytes @ fractions <= self._free,
            "everything is somewhere": whole @ fractions == 1,
            "only where it may be": fractions <= self._allowed,
        }
        objective = cp.Minimize(self._overlapped @ longest + self._summed @ fractions)
        self._problem = cp.Problem(objective, list(self._constraints.values()))

    def solve(self, instance: Instance) -> Solution:
        """Place everything.

        Raises:
            InfeasibleError: it does not fit, wherever it is.
            UnboundedError: there is no least time.
            SolverError: the solver has failed.
        """
        losses = np.repeat(instance.overlap_losses, len(Resource))
        self._slopes.value = instance.slopes
        self._constants.value = instance.constants
        self._summed.value = losses @ instance.slopes
        self._overlapped.value = 1 - instance.overlap_losses
        self._gigabytes.value = instance.gigabytes
        self._free.value = instance.free_gigabytes
        self._allowed.value = instance.allowed
        self._run()
        busy, full = (
            np.maximum(0.0, np.atleast_1d(self._constraints[name].dual_value))
            for name in ("a phase takes as long as each resource", "what is on a tier fits")
        )
        assert self._fractions.value is not None, "it was solved"
        values = np.clip(self._fractions.value, 0, 1)
        return Solution(
            fractions=dict(zip(VARIABLES, map(float, values), strict=True)),
            seconds=float(self._problem.value + losses @ instance.constants),
            multipliers=Multipliers(resources=busy + losses, memories=full),
        )

    def _run(self) -> None:
        try:
            # SciPy's HiGHS, as cvxpy's own prints a banner.
            self._problem.solve(solver=cp.SCIPY)  # type: ignore[no-untyped-call]
        except cp.SolverError as error:
            raise SolverError(
                f"the solver of the placement's linear program has failed ({error}): install"
                " another release of scipy, or give a policy instead"
            ) from error
        status = self._problem.status
        if status in (cp.INFEASIBLE, cp.settings.INFEASIBLE_OR_UNBOUNDED):
            raise InfeasibleError(
                "no placement fits into the memory there is: allow more, or compress the model"
            )
        if status == cp.UNBOUNDED:
            raise UnboundedError(
                "the placement's linear program has no least time: a rate of the hardware profile"
                " is negative, calibrate again"
            )
        if status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            raise SolverError(
                f"the solver of the placement's linear program stopped with {status!r}: try another"
                " release of scipy, or give a policy instead"
            )


def _vector(linear: Linear) -> Array:
    return np.array([linear.slopes.get(variable, 0.0) for variable in VARIABLES])
