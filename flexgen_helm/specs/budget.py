"""How much memory may be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.placement import Tier
from flexgen_helm.units import parse_bytes


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """Bytes that may be used on each tier, beside what the process takes before a model is loaded.

    A size is a number of bytes or a text such as ``"16GB"`` or ``"1.5 GiB"``. Where the device is
    the machine's own processor, device and host are one memory, and what is allowed on either may
    be used.

    Raises:
        InvalidSettingError: a size that is not understood, or below 1.
    """

    device: int | str | None = None
    """`None` for what is free."""

    host: int | str | None = None
    disk: int | str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _size(field.name, getattr(self, field.name)))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> MemoryBudget:
        """Make one of plain values, as in YAML.

        Raises:
            InvalidSettingError: they are no fields, there is no such field, or a size is not
                understood.
        """
        try:
            return cls(**settings)
        except TypeError as error:
            raise InvalidSettingError(
                f"budget {settings!r} is not understood ({error}): it has the fields device, host"
                " and disk"
            ) from error

    def on(self, tier: Tier) -> int | None:
        """Return what may be used on a tier; `None` for what is free."""
        size = getattr(self, tier.value)
        assert not isinstance(size, str), "sizes were parsed"
        return size


def _size(name: str, value: int | str | None) -> int | None:
    if value is None:
        return None
    try:
        size = parse_bytes(str(value))  # YAML has other numbers, and truth values
    except ValueError as error:
        raise InvalidSettingError(f"{name} memory {value!r} is not a size: {error}") from error
    if size < 1:
        raise InvalidSettingError(f"{name} memory {value!r} is out of range: it must be positive")
    return size
