"""Which dtype a device computes fastest in without losing the model."""

from __future__ import annotations

import torch

from flexgen_helm.errors import InvalidSettingError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Compute dtypes by name."""


def resolve_device(device: str) -> str:
    """Turn ``auto`` into ``cuda`` where there is one, else ``cpu``.

    Raises:
        InvalidSettingError: torch knows of no such device here.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = ["cuda", *gpus, "cpu"] if gpus else ["cpu"]
    if device == "auto":
        return devices[0]
    if device not in devices:
        raise InvalidSettingError(
            f"device={device!r} is not here: use 'auto', {', '.join(map(repr, devices))}"
        )
    return device


def device_of(name: str) -> torch.device:
    """Return a device by name; a GPU with its index, as without it is taken for another one."""
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def resolve_dtype(dtype: str, device: str = "auto") -> str:
    """Turn ``auto`` into the name of the dtype the device is fast in.

    CUDA: float16. CPU: bfloat16 where it has instructions for it, else float32; float16 is never
    chosen there, since its matrix products are several times slower than float32's.

    Raises:
        InvalidSettingError: the name is neither ``auto`` nor a key of `DTYPES`, or there is no such
            device.
    """
    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise InvalidSettingError(
            f"dtype={dtype!r} is not supported: use 'auto', {', '.join(map(repr, DTYPES))}"
        )
    if resolve_device(device).startswith("cuda"):
        return "float16"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    # Older torch has no public way to ask; assume the safe answer there.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
