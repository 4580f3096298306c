"""The two phases of training: learn at a high rate, then cool down on fresh instances."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingPhase:
    """A run of the optimizer with one schedule; the next phase starts from what it wrote."""

    name: str
    steps: int
    """Steps of a full-length training."""
    warm_up_prompts: int
    """How many of the steps see only short prompts."""
    peak_rate: float
    rising_steps: int
    falling_steps: int
    """Length of the cosine that the learning rate follows, whether or not the phase ends first."""
    hint_weight: float
    """Weight of the hints' loss relative to that of the answers."""
    seed_offset: int
    """Added to the training seed, so that every phase has instances of its own."""

    def rate(self, step: int, *, scale: float) -> float:
        """Learning rate: a linear rise, then a cosine down to a fiftieth of the peak."""
        rise = min(1.0, (step + 1) / self.rising_steps)
        fall = 0.5 * (1 + math.cos(math.pi * step / (self.falling_steps * scale)))
        return self.peak_rate * rise * (0.02 + 0.98 * fall)


LEARN = TrainingPhase(
    name="learn",
    steps=3200,
    warm_up_prompts=1200,
    peak_rate=2e-3,
    rising_steps=150,
    falling_steps=8000,
    hint_weight=0.5,
    seed_offset=0,
)
COOL_DOWN = TrainingPhase(
    name="cool down",
    steps=2400,
    warm_up_prompts=0,
    peak_rate=1.3e-3,
    rising_steps=50,
    falling_steps=2400,
    hint_weight=0.0,
    seed_offset=250,
)
PHASES = (LEARN, COOL_DOWN)
