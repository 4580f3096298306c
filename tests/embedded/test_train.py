"""A tiny training run writes a loadable checkpoint, the same one each time."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, OPTForCausalLM

from flexgen_helm.embedded import checkpoint_path
from flexgen_helm.embedded.learner import new_learner
from flexgen_helm.embedded.parallel import Exchange
from flexgen_helm.embedded.phases import COOL_DOWN, LEARN, PHASES, TrainingPhase
from flexgen_helm.embedded.skills import DYCK, SUBSTITUTION, Skill
from flexgen_helm.embedded.train import TrainingRun, train, work

TOKENIZER = AutoTokenizer.from_pretrained(checkpoint_path())


def tiny_run(folder: Path, scale: float, skill: Skill) -> TrainingRun:
    return TrainingRun(out=folder, seed=3, scale=scale, tokenizer=TOKENIZER, skills=(skill,))


def test_a_tiny_run_in_a_process_of_its_own_writes_a_loadable_checkpoint(tmp_path: Path) -> None:
    train(tiny_run(tmp_path / "out", 0.0003, SUBSTITUTION), [LEARN])
    assert OPTForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "opt"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("")["input_ids"] == [2]


def test_one_worker_is_deterministic_in_both_phases(tmp_path: Path) -> None:
    size = new_learner(len(TOKENIZER), seed=3).size
    weights = []
    for name in ("first", "second"):
        run = tiny_run(tmp_path / name, 0.0006, DYCK)
        for phase in PHASES:
            work(0, run, phase, Exchange(workers=1, parameters=size))
            weights.append((run.out / "model.safetensors").read_bytes())
    assert weights[:2] == weights[2:]
    assert weights[0] != weights[1]


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_the_rate_rises_and_then_falls(phase: TrainingPhase) -> None:
    rates = [phase.rate(step, scale=1.0) for step in range(phase.steps)]
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_training_ends_at_a_low_rate() -> None:
    assert COOL_DOWN.rate(COOL_DOWN.steps - 1, scale=1.0) < COOL_DOWN.peak_rate / 40
