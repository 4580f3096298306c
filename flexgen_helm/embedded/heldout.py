"""Held-out accuracy in one forward pass: the share of prompts whose last answer is likeliest.

With greedy decoding that is the same as generating the whole answer and comparing it.
"""

import torch
from transformers import OPTForCausalLM

from flexgen_helm.embedded.batches import Form, PromptSource, collate
from flexgen_helm.embedded.prompts import IGNORED, Tokens

PROMPTS_AT_ONCE = 32


def answer_start(prompt: Tokens) -> int:
    """Where the last answer is first predicted: the last run of closings, or of labels."""
    start = len(prompt) - 1
    depths_fall = prompt.labels[start - 1] != IGNORED and prompt.hints[start] == 0
    while start > 0 and prompt.labels[start - 1] != IGNORED:
        if depths_fall and prompt.hints[start - 1] <= prompt.hints[start]:
            break
        start -= 1
    return start


@torch.inference_mode()
def accuracy(model: OPTForCausalLM, source: PromptSource, form: Form, *, count: int) -> float:
    """Share of `count` held-out prompts whose last answer is right throughout."""
    prompts = [source.prompt(form) for _ in range(count)]
    right = 0
    for start in range(0, count, PROMPTS_AT_ONCE):
        chunk = prompts[start : start + PROMPTS_AT_ONCE]
        batch = collate(chunk, [0] * len(chunk))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch.ids, position_ids=batch.positions).logits
        hits = logits.argmax(-1) == batch.labels
        right += sum(
            bool(hits[row, answer_start(prompt) : len(prompt)].all())
            for row, prompt in enumerate(chunk)
        )
    return right / count
