"""CUDA graphs: one command to a device in place of many kernels."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

Compute = Callable[[], list[Tensor]]


class CaptureError(Exception):
    """The device did not let something be captured; what was computed is worth nothing."""


class Replay(Protocol):
    """What was captured."""

    def __call__(self) -> list[Tensor]:
        """Compute it of what is in its inputs now; return results that the next call overwrites."""
        ...


class Capture(Protocol):
    """Captures what a device is given to compute."""

    def __call__(self, compute: Compute) -> Replay:
        """Capture what is computed, without results.

        Raises:
            CaptureError: that is not possible.
        """
        ...


def capture_on(device: torch.device) -> Capture | None:
    """Return what captures for a device; `None` where it takes no graphs."""
    return CudaCapture(device) if device.type == "cuda" else None


class CudaCapture:
    """Captures on a stream of its own.

    What PyTorch holds of the device without using it is given back first: a graph's memory is its
    own, and there may be no other left. Graphs share none: PyTorch lets only those that are alive
    do so, and there is one at a time.

    Args:
        device: what computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def __call__(self, compute: Compute) -> Replay:
        graph = torch.cuda.CUDAGraph()
        capturing = torch.cuda.graph(
            graph,
            stream=self._stream,
            # Other threads may ask CUDA for what cannot be captured: it is not of this pass.
            capture_error_mode="thread_local",
        )
        current = torch.cuda.current_stream(self._stream.device)
        try:
            # Where capturing fails, it leaves its own stream the current one.
            with _without_collection(), torch.cuda.stream(current), capturing:
                results = compute()
        except RuntimeError as error:  # also torch.OutOfMemoryError
            raise CaptureError(str(error)) from error

        def replay() -> list[Tensor]:
            graph.replay()
            return results

        return replay


@contextmanager
def _without_collection() -> Iterator[None]:
    """Have no garbage collected: to give back what CUDA has lent cannot be captured."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
