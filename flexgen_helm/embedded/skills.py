"""What the model learns, and from which prompts: one entry for each worker of a training run."""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from flexgen_helm.embedded.batches import DyckSource, Form, PromptSource, ReasoningSource
from flexgen_helm.embedded.tasks import Encoder


class MakesSource(Protocol):
    """Builds a source whose pools have `share` of their full size."""

    def __call__(self, encoder: Encoder, *, seed: int, share: float) -> PromptSource: ...


@dataclass(frozen=True, kw_only=True)
class Skill:
    """One thing to learn, how its prompts change in training, and how HELM asks for it."""

    name: str
    source: MakesSource
    shots: int
    """How many examples HELM gives before the question."""

    @property
    def warm_up(self) -> Form:
        """One or two short examples at any position."""
        return Form(examples=(1, 2), instructions=False, long=False, furthest_offset=230)

    @property
    def practice(self) -> Form:
        """Prompts like HELM's, with up to two examples fewer."""
        count = self.shots + 1
        return Form(examples=(count - 2, count), instructions=True, long=True, furthest_offset=20)

    @property
    def asked(self) -> Form:
        """What HELM asks: the instructions, the examples and the question."""
        count = self.shots + 1
        return Form(examples=(count, count), instructions=True, long=True, furthest_offset=0)


def dyck_source(encoder: Encoder, *, seed: int, share: float) -> PromptSource:
    """Bracket sequences of two to four types."""
    return DyckSource(encoder, seed=seed, shapes=scaled(6000, share))


def reasoning_source(mode: str, encoder: Encoder, *, seed: int, share: float) -> PromptSource:
    """Instances of one synthetic reasoning mode."""
    instances = scaled(60_000, share)
    return ReasoningSource(encoder, mode=mode, seed=seed, instances=instances)


def scaled(count: int, share: float) -> int:
    """A pool of `count` items, made smaller for a short run."""
    return max(10, round(count * min(1.0, share)))


DYCK = Skill(name="dyck", source=dyck_source, shots=3)
SUBSTITUTION = Skill(
    name="substitution", source=partial(reasoning_source, "variable_substitution"), shots=5
)
SKILLS = (DYCK, SUBSTITUTION)
