"""Generation by transformers, timed token by token."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def token_times(model: Any, input_ids: Tensor, new_tokens: int) -> list[float]:
    """Generate exactly so many tokens for each prompt [b, s], all of one length.

    Returns:
        Points in time: when it began, and when each token was there.
    """
    import torch

    times = [perf_counter()]

    def note_time(ids: Tensor, *_: object, **__: object) -> Tensor:
        if ids.device.type == "cuda":
            torch.cuda.synchronize(ids.device)
        times.append(perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        stopping_criteria=[note_time],
    )
    return times
