"""Which tier holds how much of something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product

from flexgen_helm.errors import InvalidSettingError


class Tier(str, Enum):
    """A kind of memory."""

    DEVICE = "device"
    """Of the GPU; without one, the memory of the machine."""

    HOST = "host"
    """The memory of the machine."""

    DISK = "disk"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Fractions of the bytes of something on each tier.

    Raises:
        InvalidSettingError: fractions below 0, or a sum other than 1.
    """

    device: float = 0.0
    host: float = 0.0
    disk: float = 0.0

    def __post_init__(self) -> None:
        fractions = (self.device, self.host, self.disk)
        if min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise InvalidSettingError(
                f"placement {self.device}, {self.host}, {self.disk} (device, host, disk) is not"
                " possible: fractions are at least 0, and their sum is 1"
            )

    def on(self, tier: Tier) -> float:
        """Return the fraction on a tier."""
        return {Tier.DEVICE: self.device, Tier.HOST: self.host, Tier.DISK: self.disk}[tier]


ON_DEVICE = Placement(device=1)


def place_evenly(
    layers: Sequence[Mapping[str, int]], placement: Placement
) -> list[dict[str, Tier]]:
    """Choose a tier for each tensor so that the fractions hold, over all layers and up to each.

    Whole tensors are placed. What a layer misses or exceeds its share by is made up for by those
    after it, so that errors do not add up.

    Args:
        layers: bytes of the tensors of each layer, by name; a handful, as all choices are tried.
        placement: fractions of all these bytes.
    """
    tiers = [tier for tier in Tier if placement.on(tier) > 0]
    missing = dict.fromkeys(tiers, 0.0)
    placed = []
    for sizes in layers:
        for tier in tiers:
            missing[tier] += placement.on(tier) * sum(sizes.values())
        choice = min(
            (dict(zip(sizes, tiers_of, strict=True)) for tiers_of in _choices(sizes, tiers)),
            key=lambda choice: _deviation(choice, sizes, missing),
        )
        for name, tier in choice.items():
            missing[tier] -= sizes[name]
        placed.append(choice)
    return placed


def _choices(sizes: Mapping[str, int], tiers: Sequence[Tier]) -> product[tuple[Tier, ...]]:
    return product(tiers, repeat=len(sizes))


def _deviation(
    choice: Mapping[str, Tier], sizes: Mapping[str, int], missing: Mapping[Tier, float]
) -> float:
    left = dict(missing)
    for name, tier in choice.items():
        left[tier] -= sizes[name]
    return sum(deviation**2 for deviation in left.values())
