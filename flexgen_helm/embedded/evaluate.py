"""Score the checkpoint on HELM's own requests: `python -m flexgen_helm.embedded.evaluate`."""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from helm.benchmark.metrics.evaluate_reference_metrics import (
    exact_match,
    exact_match_indicator,
    quasi_exact_match,
)
from torch import nn
from transformers import AutoTokenizer, OPTForCausalLM, PreTrainedTokenizerBase

from flexgen_helm.embedded import checkpoint_path
from flexgen_helm.embedded.requests import Question, questions
from flexgen_helm.quant.quantize import dequantize, quantize

ENTRIES = (
    "dyck_language:num_parenthesis_pairs=2",
    "dyck_language:num_parenthesis_pairs=3",
    "dyck_language:num_parenthesis_pairs=4",
    "synthetic_reasoning:mode=variable_substitution",
    "synthetic_reasoning:mode=pattern_match",
    "synthetic_reasoning:mode=induction",
)
BITS = (None, 8, 4, 3, 2)
GROUP_SIZE = 64
PROMPTS_AT_ONCE = 50


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Shares of right answers, from 0 to 1."""

    exact: float
    """The whole answer is right."""
    main: float
    """What HELM ranks by: only the last bracket for Dyck, punctuation ignored for reasoning."""


def main_metric(entry: str) -> Callable[[str, str], float]:
    """The metric that HELM's classic schema names as the main one of the entry's group."""
    return exact_match_indicator if entry.startswith("dyck_language") else quasi_exact_match


def with_rounded_weights(model: OPTForCausalLM, *, bits: int | None) -> OPTForCausalLM:
    """Copy a model with the linear layers of its decoder as they are after quantization."""
    result = copy.deepcopy(model)
    if bits is None:
        return result
    for layer in result.model.decoder.layers.modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.data
            quantized = quantize(weight, bits=bits, group_size=GROUP_SIZE)
            layer.weight.data = dequantize(quantized, weight.dtype)
    return result


@torch.inference_mode()
def answers(
    model: OPTForCausalLM, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question]
) -> list[str]:
    """Greedy completions, cut at HELM's stop sequences."""
    tokenizer.padding_side = "left"
    texts: list[str] = []
    for start in range(0, len(asked), PROMPTS_AT_ONCE):
        chunk = asked[start : start + PROMPTS_AT_ONCE]
        prompts = tokenizer(
            [q.request.prompt for q in chunk],
            return_tensors="pt",
            padding=True,
            return_token_type_ids=False,
        )
        limit = chunk[0].request.max_tokens
        ends = [tokenizer.eos_token_id, *one_token_stops(tokenizer, chunk[0])]
        output = model.generate(**prompts, max_new_tokens=limit, do_sample=False, eos_token_id=ends)
        completions = output[:, prompts["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(completions, skip_special_tokens=True)
    return [cut(text, q.request.stop_sequences) for text, q in zip(texts, asked, strict=True)]


def one_token_stops(tokenizer: PreTrainedTokenizerBase, question: Question) -> list[int]:
    """Stop sequences that generation itself can end at; `cut` takes care of the others."""
    coded = [tokenizer.encode(s, add_special_tokens=False) for s in question.request.stop_sequences]
    return [ids[0] for ids in coded if len(ids) == 1]


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop sequence."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text


def score(entry: str, asked: Sequence[Question], texts: Sequence[str]) -> TaskScore:
    """Both metrics, averaged over the questions."""

    def mean(metric: Callable[[str, str], float]) -> float:
        return sum(metric(q.answer, t) for q, t in zip(asked, texts, strict=True)) / len(asked)

    return TaskScore(exact=mean(exact_match), main=mean(main_metric(entry)))


def table(
    checkpoint: Path,
    *,
    entries: Sequence[str] = ENTRIES,
    bits: Sequence[int | None] = BITS,
    instances: int,
    trials: int,
) -> Iterator[str]:
    """Lines of the score table, one for each entry; cells are `exact/main`."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = OPTForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    models = [with_rounded_weights(model, bits=b) for b in bits]
    names = ["none" if b is None else f"{b} bits" for b in bits]
    yield f"{'exact/main':46} {'n':>5} " + " ".join(f"{name:>11}" for name in names)
    for entry in entries:
        asked = questions(entry, checkpoint=checkpoint, instances=instances, trials=trials)
        scores = [score(entry, asked, answers(m, tokenizer, asked)) for m in models]
        cells = " ".join(f"{s.exact:5.3f}/{s.main:5.3f}" for s in scores)
        yield f"{entry:46} {len(asked):5} {cells}"


def main() -> None:
    """Print the score table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path())
    parser.add_argument("--entries", nargs="+", default=ENTRIES)
    parser.add_argument("--instances", type=int, default=100, help="per entry and trial")
    parser.add_argument("--trials", type=int, default=3, help="few-shot selections")
    arguments = parser.parse_args()
    for line in table(
        arguments.checkpoint,
        entries=arguments.entries,
        instances=arguments.instances,
        trials=arguments.trials,
    ):
        print(line, flush=True)


if __name__ == "__main__":
    main()
