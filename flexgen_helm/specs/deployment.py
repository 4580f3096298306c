"""Deployment names: which checkpoint, which compression, which dtype.

``flexgen/opt-30b-w4-kv4``, ``flexgen/facebook/opt-125m-w4-fp32`` and
``flexgen//data/my-opt-w3-kv2-g32`` all read *checkpoint*, *compression label*, *dtype*; the last
two may be left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from flexgen_helm.errors import DeploymentError
from flexgen_helm.specs.compression import Compression

PREFIX = "flexgen/"
"""What all our deployment names begin with; HELM calls it the host organization."""

DTYPE_SUFFIXES = {"auto": "", "float32": "-fp32", "bfloat16": "-bf16", "float16": "-fp16"}
"""Compute dtypes and their suffix; ``auto`` is the fastest the hardware computes well in."""

_NAME = re.compile(
    r"(?P<checkpoint>.+?)"
    r"(?:-(?P<label>(?:w\d+(?:-kv\d+)?|kv\d+)(?:-g\d+)?(?:-top\d+)?|top\d+))?"
    r"(?P<dtype>-fp32|-bf16|-fp16)?"
)


@dataclass(frozen=True, kw_only=True)
class DeploymentSpec:
    """A checkpoint with the settings it is to run with."""

    checkpoint: str
    """Short name of a known model (``opt-30b``), hub id (``org/name``) or local directory."""

    compression: Compression = field(default_factory=Compression)
    """What is approximated."""

    dtype: str = "auto"
    """Compute dtype, a key of `DTYPE_SUFFIXES`."""

    @property
    def name(self) -> str:
        """The deployment name that `parse` reads back.

        Raises:
            DeploymentError: it would read back another one, as the checkpoint's own name ends like
                a suffix.
        """
        label = f"-{self.compression.label}" if self.compression.enabled else ""
        name = f"{PREFIX}{self.checkpoint}{label}{DTYPE_SUFFIXES[self.dtype]}"
        checkpoint = _match(name)["checkpoint"]
        if checkpoint != self.checkpoint:
            raise DeploymentError(
                f"{name!r} means checkpoint {checkpoint!r} with a setting, not {self.checkpoint!r}:"
                " name a directory, or a link to one, that does not end like a setting"
            )
        return name

    @classmethod
    def parse(cls, name: str) -> DeploymentSpec:
        """Read a deployment name.

        Raises:
            DeploymentError: the name does not begin with `PREFIX` or names no checkpoint.
            InvalidCompressionError: its compression label names unsupported bits or group size.
        """
        match = _match(name)
        dtypes = {suffix: dtype for dtype, suffix in DTYPE_SUFFIXES.items()}
        return cls(
            checkpoint=match["checkpoint"],
            compression=Compression.parse(match["label"] or "none"),
            dtype=dtypes[match["dtype"] or ""],
        )


def _match(name: str) -> re.Match[str]:
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if not name.startswith(PREFIX) or match is None:
        raise DeploymentError(
            f"deployment {name!r} is not one of ours: write"
            f" {PREFIX}CHECKPOINT[-COMPRESSION][-DTYPE], e.g. {PREFIX}opt-30b-w4-kv4"
            f" or {PREFIX}facebook/opt-125m-w4-fp32"
        )
    return match
