"""Endless batches of few-shot prompts of one skill, drawn from a seeded generator."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flexgen_helm.embedded.instances import PAIRS, dyck_shapes, reasoning_instances
from flexgen_helm.embedded.prompts import (
    DYCK_INSTRUCTIONS,
    IGNORED,
    REASONING_INSTRUCTIONS,
    Tokens,
    few_shot,
    join,
    unlabelled,
)
from flexgen_helm.embedded.tasks import Encoder

PAD, START = 1, 2
BATCHES_DRAWN_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a prompt looks in one stage of training."""

    examples: tuple[int, int]
    """Fewest and most examples in a prompt, the last one included."""
    instructions: bool
    """Whether HELM's instructions stand in front."""
    long: bool
    """Whether the last Dyck example is as long as HELM's test inputs."""
    furthest_offset: int
    """Positions are shifted by up to this many, so that later ones are trained too."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of shape (prompts, tokens), padded on the right."""

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    hints: torch.Tensor


class PromptSource(ABC):
    """Draws prompts of one skill; two sources with the same arguments give the same prompts."""

    instructions: str

    def __init__(self, encoder: Encoder, *, seed: int) -> None:
        self._rng = random.Random(seed)
        self._encoder = encoder
        self._instructions = encoder.ids(self.instructions)

    @abstractmethod
    def examples(self, count: int, *, long: bool) -> list[Tokens]:
        """The examples of one prompt; the last one is the question."""

    def prompt(self, form: Form) -> Tokens:
        """One whole prompt, from `</s>` to the end of the last answer."""
        count = self._rng.randint(*form.examples)
        body = few_shot(
            self.examples(count, long=form.long),
            instructions=self._instructions if form.instructions else [],
            gap=self._encoder.break_id,
        )
        return join([unlabelled([START]), body])

    def batches(self, form: Form, *, tokens: int) -> list[Batch]:
        """A few batches of about `tokens` each, in random order; alike lengths share a batch."""
        prompts: list[Tokens] = []
        while sum(map(len, prompts)) < BATCHES_DRAWN_AT_ONCE * tokens:
            prompts.append(self.prompt(form))
        groups: list[list[Tokens]] = [[]]
        for prompt in sorted(prompts, key=len):
            if len(prompt) * len(groups[-1]) >= tokens:
                groups.append([])
            groups[-1].append(prompt)
        self._rng.shuffle(groups)
        return [
            collate(group, [self._rng.randint(0, form.furthest_offset) for _ in group])
            for group in groups
        ]


class DyckSource(PromptSource):
    """Bracket sequences; the question is as long as HELM's, its few-shot examples are short."""

    instructions = DYCK_INSTRUCTIONS

    def __init__(self, encoder: Encoder, *, seed: int, shapes: int) -> None:
        super().__init__(encoder, seed=seed)
        self._long = dyck_shapes(seed=seed, count=shapes, long=True)
        self._short = dyck_shapes(seed=seed + 1, count=shapes, long=False)

    def examples(self, count: int, *, long: bool) -> list[Tokens]:
        pairs = PAIRS[: self._rng.choice((2, 3, 3, 4))]
        shapes = self._rng.choices(self._short, k=count)
        if long:
            shapes[-1] = self._rng.choice(self._long)
        return [self._encoder.dyck(shape, pairs=pairs, rng=self._rng) for shape in shapes]


class ReasoningSource(PromptSource):
    """One mode of HELM's synthetic reasoning scenario."""

    instructions = REASONING_INSTRUCTIONS

    def __init__(self, encoder: Encoder, *, mode: str, seed: int, instances: int) -> None:
        super().__init__(encoder, seed=seed)
        drawn = reasoning_instances(mode, seed=seed, count=instances)
        self._pool = [encoder.reasoning(instance) for instance in drawn]

    def examples(self, count: int, *, long: bool) -> list[Tokens]:  # noqa: ARG002
        examples = self._rng.choices(self._pool, k=count)
        # HELM ends an answer with a line break of its own, before the one between examples.
        ending = unlabelled([self._encoder.break_id])
        return [join([example, ending]) for example in examples[:-1]] + [examples[-1]]


def collate(prompts: Sequence[Tokens], offsets: Sequence[int]) -> Batch:
    """The first token stays at position 0, as in every prompt; the others are shifted."""
    length = max(map(len, prompts))

    def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])

    positions = torch.arange(length) + torch.tensor(offsets)[:, None]
    positions[:, 0] = 0
    return Batch(
        ids=padded([prompt.ids for prompt in prompts], PAD),
        positions=positions,
        labels=padded([prompt.labels for prompt in prompts], IGNORED),
        hints=padded([prompt.hints for prompt in prompts], IGNORED),
    )
