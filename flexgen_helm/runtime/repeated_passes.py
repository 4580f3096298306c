"""Passes of decode that repeat, captured and replayed.

To tell a GPU of a kernel takes longer than most kernels of decode take. Where everything is in its
memory, one token after another goes through the same kernels in the same memory, until a pool is
packed anew or new sequences join. Such a pass is captured when it comes for the second time, and
replayed from then on; what differs from token to token is copied to where the captured kernels read
it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from flexgen_helm.notices import FlexGenWarning
from flexgen_helm.runtime.cuda_graphs import Capture, CaptureError, Compute, Replay
from flexgen_helm.runtime.decode import DecodeMicroBatch
from flexgen_helm.runtime.model_pass import num_rows


class RepeatedPasses:
    """Computes passes of decode: as ever, or as they were captured.

    A sequence that ends leaves a row that is computed in vain, until its pool is packed anew.

    Args:
        capture: captures them; `None` if each is computed as ever.
    """

    idle_rows = 0
    """Rows that the last pass computed in vain."""

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture
        self._last: Sequence[DecodeMicroBatch] = ()
        """Those of the last pass or, if that was a replay, those whose memory it reads."""
        self._replay: Replay | None = None

    def run(self, micro_batches: Sequence[DecodeMicroBatch], compute: Compute) -> list[Tensor]:
        """Return what `compute` does, or would, of some micro-batches.

        Raises:
            CaptureError: none is captured from now on, and this one must begin anew.
        """
        if self._capture is None:
            return compute()
        if not self._repeats(micro_batches):
            self.forget()
            self._last = micro_batches
            return compute()
        if self._replay is None:
            try:
                self._replay = self._capture(compute)
            except CaptureError as error:
                warnings.warn(
                    f"decode is not captured as a CUDA graph ({error}): it goes on without",
                    FlexGenWarning,
                    stacklevel=2,
                )
                self.give_up()
                raise
            self._last = micro_batches
        rows = [
            captured.take_over(micro_batch)
            for captured, micro_batch in zip(self._last, micro_batches, strict=True)
        ]
        self.idle_rows = num_rows(self._last) - num_rows(micro_batches)
        return [result[where] for result, where in zip(self._replay(), rows, strict=True)]

    def _repeats(self, micro_batches: Sequence[DecodeMicroBatch]) -> bool:
        """Whether some take the same kernels as those before.

        To be captured they need as many rows, too: for another number of them, kernels may have to
        be compiled or loaded, which cannot be captured.
        """
        return (
            len(micro_batches) == len(self._last)
            and all(
                micro_batch.repeats(earlier)
                for micro_batch, earlier in zip(micro_batches, self._last, strict=True)
            )
            and (self._replay is not None or num_rows(micro_batches) == num_rows(self._last))
        )

    def forget(self) -> None:
        """Give back the memory of what was captured: it does not come again."""
        self._last, self._replay = (), None
        self.idle_rows = 0

    def give_up(self) -> bool:
        """Capture nothing from now on; return whether that gives memory back."""
        had_memory = self._replay is not None
        self.forget()
        self._capture = None
        return had_memory
