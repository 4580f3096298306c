"""The checkpoints and compression settings that have a name of their own in HELM."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from flexgen_helm.specs.compression import BITS, DEFAULT_GROUP_SIZE, Compression

DEFAULT_POSITIONS = 2048
"""Positions of every OPT, OPT-IML and Galactica model on the hub."""

COMPRESSION_SETTINGS = tuple(
    Compression(weight_bits=weight_bits, cache_bits=cache_bits)
    for weight_bits in (None, *reversed(BITS))
    for cache_bits in (None, *reversed(BITS))
)
"""What every known model is registered with: none, 8, 4, 3 or 2 bits for each of its two parts."""

EMBEDDED_CHECKPOINT = Path(__file__).parent.parent / "embedded" / "checkpoint"
"""The demonstration model that ships with this package."""


@dataclass(frozen=True, kw_only=True)
class KnownTokenizer:
    """A tokenizer that several checkpoints share."""

    name: str
    """Name after ``flexgen/``."""

    source: str
    """Hub id or directory its files are read from."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A checkpoint we can describe without reading it."""

    name: str
    """Name after ``flexgen/``, without a compression label."""

    checkpoint: str
    """Hub id, or a directory inside this package."""

    display_name: str
    """Name in HELM's tables."""

    description: str
    """A sentence for HELM's model page."""

    creator: str
    """Organisation that trained it."""

    num_parameters: int | None
    """Parameters, rounded as its authors do; `None` where its `config.json` is at hand."""

    release_date: date | None
    """Day it was published, where known."""

    tokenizer: KnownTokenizer
    """Its tokenizer."""


_OPT_TOKENIZER = KnownTokenizer(name="opt", source="facebook/opt-125m")
_GALACTICA_TOKENIZER = KnownTokenizer(name="galactica", source="facebook/galactica-125m")
_EMBEDDED_TOKENIZER = KnownTokenizer(name="opt-embedded", source=str(EMBEDDED_CHECKPOINT))


def _parameters(size: str) -> int:
    """Turn ``1.3b`` into 1,300,000,000."""
    unit = {"m": 10**6, "b": 10**9}[size[-1]]
    return round(float(size[:-1]) * unit)


def _opt(size: str) -> KnownModel:
    return _meta(
        f"opt-{size}",
        size=size,
        family="OPT",
        summary="Open Pre-trained Transformers ({size} parameters), decoder-only",
        paper="2205.01068",
        release_date=date(2022, 5, 2),
    )


def _opt_iml(size: str, variant: str) -> KnownModel:
    return _meta(
        f"opt-iml{variant}-{size}",
        size=size,
        family="OPT-IML-Max" if variant else "OPT-IML",
        summary="OPT ({size} parameters), instruction-tuned on about 2000 tasks",
        paper="2212.12017",
        release_date=date(2022, 12, 22),
    )


def _galactica(size: str) -> KnownModel:
    return _meta(
        f"galactica-{size}",
        size=size,
        family="Galactica",
        summary="Galactica ({size} parameters), trained on scientific text",
        paper="2211.09085",
        release_date=date(2022, 11, 15),
        tokenizer=_GALACTICA_TOKENIZER,
    )


def _meta(
    name: str,
    *,
    size: str,
    family: str,
    summary: str,
    paper: str,
    release_date: date,
    tokenizer: KnownTokenizer = _OPT_TOKENIZER,
) -> KnownModel:
    """Describe a model that Meta published; `paper` is its arXiv number."""
    return KnownModel(
        name=name,
        checkpoint=f"facebook/{name}",
        display_name=f"{family} ({size.upper()})",
        description=f"{summary.format(size=size.upper())}"
        f" ([paper](https://arxiv.org/abs/{paper})).",
        creator="Meta",
        num_parameters=_parameters(size),
        release_date=release_date,
        tokenizer=tokenizer,
    )


_EMBEDDED = KnownModel(
    name="opt-embedded",
    checkpoint=str(EMBEDDED_CHECKPOINT),
    display_name="OPT (embedded)",
    description="A tiny OPT model that ships with flexgen_helm, trained on two of HELM's synthetic"
    " scenarios; it knows nothing else.",
    creator="flexgen_helm",
    num_parameters=None,
    release_date=None,
    tokenizer=_EMBEDDED_TOKENIZER,
)

KNOWN_MODELS = (
    *map(_opt, ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")),
    *(_opt_iml(size, variant) for size in ("1.3b", "30b") for variant in ("", "-max")),
    *map(_galactica, ("125m", "1.3b", "6.7b", "30b", "120b")),
    _EMBEDDED,
)
"""Every checkpoint with a name of its own."""


def find_known(checkpoint: str) -> KnownModel | None:
    """Return the known model of that name or hub id, if there is one."""
    matches = (m for m in KNOWN_MODELS if checkpoint in (m.name, m.checkpoint))
    return next(matches, None)


def describe(compression: Compression) -> str:
    """Words for a setting: ``4-bit weights and KV cache``; empty where nothing is approximated."""
    weights, cache = compression.weight_bits, compression.cache_bits
    parts = [
        f"{weights}-bit weights" if weights else "",
        f"{cache}-bit KV cache" if cache else "",
    ]
    text = " and ".join(part for part in parts if part)
    if weights and weights == cache:
        text = f"{weights}-bit weights and KV cache"
    if compression.quantized and compression.group_size != DEFAULT_GROUP_SIZE:
        text += f", groups of {compression.group_size}"
    if not compression.dense_attention:
        sparse = f"attention to the top {compression.attention_percent} % of values"
        text = f"{text}, {sparse}" if text else sparse
    return text
