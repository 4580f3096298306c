"""Sums of fractions: what the linear program is made of, and what a policy's figures are read from.

A *variable* is what is placed and a tier: the fraction of it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from flexgen_helm.specs.placement import Placement, Tier
from flexgen_helm.specs.policy import PLACED, Policy

VARIABLES = tuple(product(PLACED, Tier))
"""The nine fractions of the FlexGen paper's linear program (section 4.3)."""

Variable = tuple[str, Tier]
Fractions = Mapping[Variable, float]


@dataclass(frozen=True)
class Linear:
    """A constant, and what each fraction adds."""

    constant: float = 0.0
    slopes: Mapping[Variable, float] = field(default_factory=dict)

    def __add__(self, other: Linear | float) -> Linear:
        if not isinstance(other, Linear):
            return Linear(self.constant + other, self.slopes)
        slopes = dict(self.slopes)
        for variable, slope in other.slopes.items():
            slopes[variable] = slopes.get(variable, 0.0) + slope
        return Linear(self.constant + other.constant, slopes)

    def __mul__(self, factor: float) -> Linear:
        slopes = {variable: slope * factor for variable, slope in self.slopes.items()}
        return Linear(self.constant * factor, slopes)

    def __truediv__(self, divisor: float) -> Linear:
        return self * (1 / divisor)

    def at(self, fractions: Fractions) -> float:
        """Return its value."""
        return self.constant + sum(
            slope * fractions[variable] for variable, slope in self.slopes.items()
        )


def placed_on(placed: str, *tiers: Tier) -> Linear:
    """Return the fraction of something that is on some tiers."""
    return Linear(slopes={(placed, tier): 1.0 for tier in tiers})


def total(terms: Mapping[str, Linear]) -> Linear:
    """Add up named terms."""
    return sum(terms.values(), Linear())


def fractions_of(policy: Policy) -> dict[Variable, float]:
    """Return where a policy has things."""
    placements = policy.placements
    return {(placed, tier): placements[placed].on(tier) for placed, tier in VARIABLES}


def placement_of(fractions: Fractions, placed: str) -> Placement:
    """Return the placement of something, with what is less than a thousandth left out."""
    parts = {tier: fractions[placed, tier] for tier in Tier}
    parts = {tier: part if part > 1e-3 else 0.0 for tier, part in parts.items()}
    whole = sum(parts.values())
    device, host = (round(parts[tier] / whole, 6) for tier in (Tier.DEVICE, Tier.HOST))
    return Placement(device=device, host=host, disk=max(0.0, round(1 - device - host, 6)))
