"""What is approximated to save memory and time, and the short name of each setting."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flexgen_helm.errors import InvalidCompressionError

BITS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64
SCALE_AND_ZERO_BYTES = 4
"""Bytes of one group's float16 scale and float16 zero."""

KERNEL_BITS = 4
"""Bits of the codes that kernels for a GPU read, and PyTorch's product on a processor."""

LEAST_KERNEL_GROUP = 16
"""Consecutive numbers of such a code's group, at least."""

_LABEL = re.compile(r"(?:-w(?P<w>\d+))?(?:-kv(?P<kv>\d+))?(?:-g(?P<g>\d+))?(?:-top(?P<top>\d+))?")
"""Behind a dash."""


def kernels_read(bits: int | None, group_size: int, row_len: int) -> bool:
    """Whether kernels for a GPU read rows that are quantized so."""
    whole = row_len % group_size == 0
    fits = group_size >= LEAST_KERNEL_GROUP and group_size & (group_size - 1) == 0
    return bits == KERNEL_BITS and whole and fits


def processors_read(bits: int | None, group_size: int) -> bool:
    """Whether PyTorch's product of few rows with codes on a processor knows such weights."""
    return bits == KERNEL_BITS and group_size in GROUP_SIZES


def kernels_attend(bits: int | None, group_size: int, head_size: int) -> bool:
    """Whether they attend to keys and values, of which no group has numbers of two heads."""
    power_of_two = head_size & (head_size - 1) == 0
    return power_of_two and kernels_read(bits, group_size, head_size)


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Group-wise quantization and sparse attention; what is `None` is left as it is.

    Raises:
        InvalidCompressionError: bits or group size outside `BITS` and `GROUP_SIZES`, or a
            percentage outside 1 to 99.
    """

    weight_bits: int | None = None
    """Bits of a weight of a linear layer; embeddings, norms and biases are never quantized."""

    cache_bits: int | None = None
    """Bits a key or value of the KV cache takes."""

    group_size: int = DEFAULT_GROUP_SIZE
    """Consecutive numbers that share one scale and one zero."""

    attention_percent: int | None = None
    """Of its past positions, the part whose values a token in decode reads: in each head those of
    largest weight (FlexGen, arXiv 2303.06865, section 5). Prompts are attended to in full."""

    def __post_init__(self) -> None:
        for name in ("weight_bits", "cache_bits"):
            bits = getattr(self, name)
            if bits is not None and bits not in BITS:
                raise InvalidCompressionError(
                    f"{name}={bits!r} is not supported: use one of {BITS}, or None for no"
                    " compression"
                )
        if self.group_size not in GROUP_SIZES:
            raise InvalidCompressionError(
                f"group_size={self.group_size!r} is not supported: use one of {GROUP_SIZES}"
            )
        if self.attention_percent is not None and not 1 <= self.attention_percent <= 99:
            raise InvalidCompressionError(
                f"attention_percent={self.attention_percent!r} is out of range: use 1 to 99, or"
                " None for attention to all positions"
            )

    @property
    def quantized(self) -> bool:
        """Whether weights or cache are."""
        return self.weight_bits is not None or self.cache_bits is not None

    @property
    def enabled(self) -> bool:
        """Whether anything is approximated."""
        return self.quantized or not self.dense_attention

    @property
    def dense_attention(self) -> bool:
        """Whether a token in decode reads all of its past."""
        return self.attention_percent is None

    @property
    def label(self) -> str:
        """Short name used in deployments, flags and tables: ``none``, ``w4``, ``kv4-top10``."""
        if not self.enabled:
            return "none"
        parts = [
            f"w{self.weight_bits}" if self.weight_bits is not None else "",
            f"kv{self.cache_bits}" if self.cache_bits is not None else "",
            f"g{self.group_size}"
            if self.quantized and self.group_size != DEFAULT_GROUP_SIZE
            else "",
            "" if self.dense_attention else f"top{self.attention_percent}",
        ]
        return "-".join(part for part in parts if part)

    @classmethod
    def parse(cls, label: str) -> Compression:
        """Turn a `label` back into the setting it names.

        Raises:
            InvalidCompressionError: the text is not such a label, or names unsupported bits.
        """
        if label == "none":
            return cls()
        match = _LABEL.fullmatch(f"-{label}")
        if match is None or (match["g"] and not (match["w"] or match["kv"])):
            raise InvalidCompressionError(
                f"compression {label!r} is not understood: write 'none', or bits of weights and of"
                " the KV cache such as 'w4', 'kv4', 'w4-kv4' or 'w4-kv4-g128', and a percentage of"
                " positions attended to such as 'top10' or 'w4-kv4-top10'"
            )
        return cls(
            weight_bits=int(match["w"]) if match["w"] else None,
            cache_bits=int(match["kv"]) if match["kv"] else None,
            group_size=int(match["g"]) if match["g"] else DEFAULT_GROUP_SIZE,
            attention_percent=int(match["top"]) if match["top"] else None,
        )


def quantized_bytes(*, num_rows: int, row_len: int, bits: int, group_size: int) -> int:
    """Bytes of `num_rows` rows of `row_len` numbers, packed; a short last group is stored whole."""
    num_groups = -(-row_len // group_size)
    codes_bytes = group_size * bits // 8
    return num_rows * num_groups * (codes_bytes + SCALE_AND_ZERO_BYTES)
