"""Train the checkpoint from scratch: `python -m flexgen_helm.embedded.train --out DIR --seed 0`."""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.multiprocessing.spawn import start_processes
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from flexgen_helm.embedded.batches import Batch, Form, PromptSource
from flexgen_helm.embedded.heldout import accuracy
from flexgen_helm.embedded.learner import Learner, learner_from, new_learner
from flexgen_helm.embedded.model import save
from flexgen_helm.embedded.parallel import Exchange
from flexgen_helm.embedded.phases import PHASES, TrainingPhase
from flexgen_helm.embedded.skills import SKILLS, Skill, scaled
from flexgen_helm.embedded.tasks import Encoder
from flexgen_helm.embedded.tokenizer import train_tokenizer

TOKENS_PER_BATCH = 1024
HELD_OUT_SHARE = 0.05
HELD_OUT_PROMPTS = 96
REPORTS = 10


class Seeds(NamedTuple):
    """Seeds of HELM's generators; HELM itself uses 42."""

    training: int
    held_out: int


def source_seeds(seed: int) -> Seeds:
    """Far apart for neighbouring seeds, and never HELM's."""
    return Seeds(training=1000 * seed + 1000, held_out=1000 * seed + 1500)


def batches(source: PromptSource, forms: Sequence[tuple[Form, int]]) -> Iterator[Batch]:
    """For each form in turn, as many batches as asked for."""
    for form, count in forms:
        waiting: list[Batch] = []
        for _ in range(count):
            waiting = waiting or source.batches(form, tokens=TOKENS_PER_BATCH)
            yield waiting.pop()


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What all workers of one training run agree on."""

    out: Path
    seed: int
    scale: float
    """Share of the full number of steps; up to 1 it shrinks the pools of instances too."""
    tokenizer: PreTrainedTokenizerFast
    skills: tuple[Skill, ...] = SKILLS
    """One worker trains each."""

    def learner(self, phase: TrainingPhase) -> Learner:
        """The first phase starts from random weights, the next from what that one wrote."""
        if phase == PHASES[0]:
            return new_learner(len(self.tokenizer), seed=self.seed)
        return learner_from(self.out)

    def steps(self, phase: TrainingPhase) -> int:
        return max(1, round(phase.steps * self.scale))

    def forms(self, phase: TrainingPhase, skill: Skill) -> list[tuple[Form, int]]:
        """Short prompts first, then prompts like HELM's, with the number of steps for each."""
        short = round(phase.warm_up_prompts * self.scale)
        return [(skill.warm_up, short), (skill.practice, self.steps(phase) - short)]

    def reports_after(self, step: int, phase: TrainingPhase) -> bool:
        """Whether to measure, report and save after this step."""
        done, steps = step + 1, self.steps(phase)
        return done % max(1, steps // REPORTS) == 0 or done == steps


def report(
    run: TrainingRun, phase: TrainingPhase, progress: torch.Tensor, *, done: int, seconds: float
) -> None:
    """Print a line; `progress` has a row (loss, held-out accuracy) for each skill."""
    steps = run.steps(phase)
    left = seconds / done * (steps - done)
    columns = "  ".join(
        f"{skill.name}: loss {loss:.4f}, held-out {score:.2f}"
        for skill, (loss, score) in zip(run.skills, progress.tolist(), strict=True)
    )
    print(
        f"{phase.name}: step {done}/{steps}  {columns}  {seconds:.0f} s, {left:.0f} s left",
        flush=True,
    )


def work(worker: int, run: TrainingRun, phase: TrainingPhase, exchange: Exchange) -> None:
    """Train on the batches of one skill, with the gradient that all workers share."""
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    skill, seeds = run.skills[worker], source_seeds(run.seed)
    encoder = Encoder(run.tokenizer.backend_tokenizer)
    source = skill.source(encoder, seed=seeds.training + phase.seed_offset, share=run.scale)
    held_out = skill.source(encoder, seed=seeds.held_out, share=HELD_OUT_SHARE * run.scale)
    prompts = scaled(HELD_OUT_PROMPTS, run.scale)
    learner = run.learner(phase)
    begun, average = time.monotonic(), math.nan
    for step, batch in enumerate(batches(source, run.forms(phase, skill))):
        learner.set_rate(phase.rate(step, scale=run.scale))
        loss = learner.learn(
            batch, exchange, worker=worker, step=step, hint_weight=phase.hint_weight
        )
        average = loss if step == 0 else 0.98 * average + 0.02 * loss
        if run.reports_after(step, phase):
            right = accuracy(learner.model, held_out, skill.asked, count=prompts)
            progress = exchange.gather((average, right), worker=worker)
            if worker == 0:
                seconds = time.monotonic() - begun
                report(run, phase, progress, done=step + 1, seconds=seconds)
                save(learner.model, run.tokenizer, run.out)


def train(run: TrainingRun, phases: Sequence[TrainingPhase] = PHASES) -> None:
    """Write a checkpoint to `run.out`; an equal run gives equal files on one machine type."""
    for phase in phases:
        size = new_learner(len(run.tokenizer), seed=run.seed).size
        exchange = Exchange(workers=len(run.skills), parameters=size)
        arguments = (run, phase, exchange)
        start_processes(work, args=arguments, nprocs=len(run.skills), start_method="spawn")


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps-scale", type=float, default=1.0, help="share of the full run")
    arguments = parser.parse_args()
    tokenizer = train_tokenizer()
    scale = arguments.steps_scale
    train(TrainingRun(out=arguments.out, seed=arguments.seed, scale=scale, tokenizer=tokenizer))


if __name__ == "__main__":
    main()
