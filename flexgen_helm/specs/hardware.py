"""What a machine can do, as the planner sees it; measured, or from a datasheet."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from math import exp, isfinite, log
from pathlib import Path
from statistics import median
from typing import Any

from flexgen_helm.errors import HardwareError


@dataclass(frozen=True)
class Curve:
    """A rate that depends on a size, by points `(size, rate)` of growing size.

    Between points it is a power of the size; before the first it is in proportion to it, as a
    product of few rows takes as long as one of a row; behind the last it stays.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.points]
        valid = all(isfinite(x) and x > 0 for point in self.points for x in point)
        if not sizes or not valid or any(a >= b for a, b in pairwise(sizes)):
            raise HardwareError(
                f"{self.points} is no rate by size: list pairs of positive numbers, by growing size"
            )

    def at(self, size: float) -> float:
        """Return the rate at a size."""
        sizes = [point[0] for point in self.points]
        index = bisect_left(sizes, size)
        if index == len(sizes):
            return self.points[-1][1]
        if index == 0:
            return self.points[0][1] * size / sizes[0]
        (left, low), (right, high) = self.points[index - 1 : index + 1]
        return low * exp(log(high / low) * log(size / left) / log(right / left))


@dataclass(frozen=True)
class Surface:
    """A rate that depends on the numbers of a matrix and on the rows it is multiplied with.

    Curves by rows, of growing matrices; between two of them a power of the size, and beyond the
    first and the last as those.
    """

    curves: tuple[tuple[float, Curve], ...]

    def __post_init__(self) -> None:
        # A curve has the same demands on its sizes.
        Curve(tuple((size, curve.points[0][1]) for size, curve in self.curves))

    @property
    def most(self) -> float:
        """The highest rate."""
        return max(rate for _, curve in self.curves for _, rate in curve.points)

    def at(self, size: float, rows: float) -> float:
        """Return the rate of a product."""
        points = tuple((numbers, curve.at(rows)) for numbers, curve in self.curves)
        return Curve(points).at(max(size, points[0][0]))


_MAY_BE_NOTHING = (
    "step_s", "disk_step_s", "link_step_s", "captured_step_s", "token_s", "contention"
)  # fmt: skip

_NUMBER = int | float, "a number"
_KINDS = {
    "bool": (bool, "true or false"),
    **dict.fromkeys(("int", "float", "float | None"), _NUMBER),
}
"""Of values, by the type of their field, and in words."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Capacities and rates. What a machine has no part for, such as a device of its own, is `None`.

    Raises:
        HardwareError: a rate or a capacity that is not a positive number.
    """

    name: str
    source: str
    """Where the figures are from: ``measured``, or what they were taken from."""

    date: str = ""
    """When they were measured."""

    conditions: Mapping[str, str] = field(default_factory=dict)
    """What else decides them: processor, threads, versions."""

    unified: bool
    """Whether device and host are one memory, as on a machine without GPU."""

    dtype: str
    """The compute dtype the rates are for."""

    device_bytes: int
    """Memory of the device; of the machine, if `unified`."""

    host_bytes: int
    """Memory of the host; the same, if `unified`."""

    disk_bytes: int

    product_flop_per_s: Surface
    """Of a product with weights of the compute dtype, by the matrix's numbers and by rows."""

    hidden_bytes_per_s: float
    """Hidden states that pass a layer: what norms, sums and copies take, beside products and
    attention. Measured in prefill."""

    attention_flop_per_s: float
    """Of attention in prefill, softmax included, and to shared prefixes in decode."""

    device_attention_bytes_per_s: float
    """Own keys and values of sequences in decode that the device attends to."""

    host_attention_bytes_per_s: float
    """Likewise of the host."""

    dequantized_weights_per_s: Curve
    """Weights, to the compute dtype, with what a product with them takes longer than with others;
    by the numbers of a layer's largest matrix."""

    dequantized_cache_per_s: float
    """Keys and values, likewise."""

    quantized_cache_per_s: float

    host_to_device_bytes_per_s: float | None
    """From pinned memory; `None` if `unified`."""

    device_to_host_bytes_per_s: float | None

    disk_read_bytes_per_s: float
    disk_write_bytes_per_s: float

    step_s: float
    """What a micro-batch costs in a layer, however small it is."""

    disk_step_s: float
    """What it costs more where its keys and values are on disk, however few: to begin reads and
    writes, and to put together what was read."""

    token_s: float
    """What a new token costs beside the pass it comes from: to draw and to write it."""

    contention: float
    """Of what could be done at the same time, the part that takes time of its own: 0 where
    computing and every transfer overlap without loss, 1 where nothing does."""

    captured_step_s: float | None = None
    """What a micro-batch costs in a layer in decode, however small it is, where passes are captured
    as CUDA graphs; `None` where they are not."""

    packed_flop_per_s: Surface | None = None
    """Of a product with 4-bit weights as they are stored, as they stay where that is faster than to
    dequantize them for a pass. `None` where they are always dequantized."""

    link_step_s: float = 0.0
    """What sequences that are attended to together cost more in a layer in decode where their keys
    and values come over a link, however few: to have them brought and stored."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type not in _KINDS or (value is None and item.type == "float | None"):
                continue
            kind, called = _KINDS[item.type]
            if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
                raise HardwareError(
                    f"{item.name}={value!r} of hardware {self.name!r} is not understood: it must"
                    f" be {called}"
                )
            least = 0 if item.name in _MAY_BE_NOTHING else 1
            if kind is not bool and not (isfinite(value) and value >= least):
                raise HardwareError(
                    f"{item.name}={value!r} of hardware {self.name!r} is out of range: it must"
                    f" be at least {least}"
                )
        if self.contention > 1:
            raise HardwareError(
                f"contention={self.contention!r} of hardware {self.name!r} is out of range: it is"
                " a part of 1"
            )

    @property
    def dtype_bytes(self) -> int:
        """Bytes of a number in the compute dtype."""
        return 4 if self.dtype == "float32" else 2

    def to_json(self) -> str:
        packed = self.packed_flop_per_s
        curves = {
            "product_flop_per_s": _written(self.product_flop_per_s),
            "packed_flop_per_s": None if packed is None else _written(packed),
            "dequantized_weights_per_s": self.dequantized_weights_per_s.points,
        }
        return json.dumps({**asdict(self), **curves}, indent=2)

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Hardware:
        """Read what `to_json` has written.

        Args:
            text: JSON.
            where: it is from, for the message of an error.

        Raises:
            HardwareError: something is missing, unknown or out of range.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            packed = values.pop("packed_flop_per_s", None)
            return cls(
                product_flop_per_s=_surface(values.pop("product_flop_per_s")),
                packed_flop_per_s=None if packed is None else _surface(packed),
                dequantized_weights_per_s=_curve(values.pop("dequantized_weights_per_s")),
                **values,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HardwareError(
                f"{where} is no hardware profile ({error}): make one with flexgen-helm calibrate,"
                " or begin with one of scenarios/hardware"
            ) from error


def _written(surface: Surface) -> list[dict[str, Any]]:
    return [{"numbers": numbers, "by_rows": curve.points} for numbers, curve in surface.curves]


def _surface(curves: Sequence[Mapping[str, Any]]) -> Surface:
    return Surface(tuple((curve["numbers"], _curve(curve["by_rows"])) for curve in curves))


def _curve(points: Sequence[Sequence[float]]) -> Curve:
    return Curve(tuple((size, rate) for size, rate in points))


def read_hardware(path: Path) -> Hardware:
    """Read a profile.

    Raises:
        HardwareError: there is none, or it is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # or it is no text
        raise HardwareError(f"{path} cannot be read ({error}): name a hardware profile") from error
    return Hardware.from_json(text, where=str(path))


def middle(rounds: Sequence[Hardware]) -> Hardware:
    """Return the median of every rate that was measured several times.

    A machine may be slow for a while.
    """
    changes: dict[str, object] = {}
    for item in fields(Hardware):
        values = [getattr(found, item.name) for found in rounds]
        if isinstance(values[0], Curve):
            changes[item.name] = _middle_curve(values)
        elif isinstance(values[0], Surface):
            by_size = zip(*(surface.curves for surface in values), strict=True)
            changes[item.name] = Surface(
                tuple((same[0][0], _middle_curve([curve for _, curve in same])) for same in by_size)
            )
        elif isinstance(values[0], float):
            changes[item.name] = median(values)
    return replace(rounds[-1], **changes)  # type: ignore[arg-type]  # of the types they had


def _middle_curve(curves: Sequence[Curve]) -> Curve:
    by_size = zip(*(curve.points for curve in curves), strict=True)
    return Curve(tuple((same[0][0], median(rate for _, rate in same)) for same in by_size))
