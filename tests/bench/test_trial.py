"""Trials of a tiny model, in processes of their own."""

import pytest

from flexgen_helm.bench import trial
from flexgen_helm.bench.checkpoint import SHAPES, random_checkpoint
from flexgen_helm.bench.trial import ACCELERATE, OURS, TRANSFORMERS, Bench, Trial, UniformWorkload
from flexgen_helm.errors import CommandError
from tests.conftest import SHARED_DATA

TOKENIZER = SHARED_DATA / "opt-tokenizer"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    if not TOKENIZER.is_dir():
        pytest.skip("the tokenizer of the checkpoint is not here")
    directory = tmp_path_factory.mktemp("trials")
    checkpoint = random_checkpoint(
        SHAPES["tiny"], tokenizer=TOKENIZER, parent=directory, dtype="bfloat16"
    )
    return Bench(checkpoint=checkpoint, directory=directory)


@pytest.mark.parametrize("system", [OURS, TRANSFORMERS, ACCELERATE])
def test_all_systems_generate_as_many_tokens(bench, system):
    policy = {"weights": {"disk": 1.0}, "cache": {"disk": 1.0}} if system == OURS else {}
    row = trial.run_trial(
        Trial(stage="s", system=system, workload=UniformWorkload(8, 3), batch=2, policy=policy),
        bench,
        number=1,
    )
    assert (row.system, row.prompt_len, row.new_tokens, row.generated_tokens) == (system, 8, 3, 6)
    assert row.tokens_per_s == pytest.approx(6 / row.total_s, rel=0.2)
    assert (row.planned_bytes is not None) == (row.spill_bytes > 0) == (system == OURS)


def test_a_process_that_fails_says_where_the_reason_is(bench):
    with pytest.raises(CommandError, match=r"status 1: the reason is in .*trial-02\.log"):
        trial.run_trial(
            Trial(stage="s", system="other", workload=UniformWorkload(8, 3), batch=2),
            bench,
            number=2,
        )


def test_one_that_is_killed_has_no_figures(bench, monkeypatch):
    monkeypatch.setattr(trial, "ask", lambda *_, **__: None)
    row = trial.run_trial(
        Trial(stage="s", system=OURS, workload=UniformWorkload(8, 3), batch=2), bench, number=3
    )
    assert row.tokens_per_s is None
    assert row.total_s == float("inf")
