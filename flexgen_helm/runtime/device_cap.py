"""A limit on the memory of a GPU that holds for everything this process does with it."""

from __future__ import annotations

import torch


def cap_device_memory(device: torch.device, allowed_bytes: int | None) -> None:
    """Have PyTorch refuse more of a GPU's memory: a large card stands in for a small one.

    What CUDA itself takes for its context does not pass PyTorch, and does not count.

    Args:
        device: what computes; only of a CUDA device, with its index, memory is capped.
        allowed_bytes: of this process in all, with what is reserved and not in use; `None` for all
            there is.
    """
    if device.type != "cuda":
        return
    part = 1.0
    if allowed_bytes is not None:
        part = allowed_bytes / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, part), device)
