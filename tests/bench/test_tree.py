import pytest

from flexgen_helm.bench.tree import ComputationRow, arrange, fit, random_prompts, run_tree_benchmark
from tests.conftest import byte_tokenizer, save_random_checkpoint


def test_arranging_counts_the_tokens_of_the_trie():
    prompts = random_prompts(250, shared=30, own=20)
    row = arrange(prompts)
    unique = {tuple(p[:end]) for p in prompts.tolist() for end in range(1, 51)}
    assert row.unique_tokens == len(unique)
    assert row.prompt_tokens == 250 * 50
    assert row.blocks == 1


def test_a_fit_to_a_line_finds_the_line():
    rows = [
        ComputationRow(
            requests=1,
            prompt_tokens=1,
            unique_tokens=tokens,
            generated_tokens=1,
            seconds=2 + 0.5 * tokens,
            memory_bytes=1,
        )
        for tokens in (10, 20, 40)
    ]
    line = fit(rows)
    assert line.seconds_per_token == pytest.approx(0.5)
    assert line.seconds_at_zero == pytest.approx(2)
    assert line.r_squared == pytest.approx(1)


def test_the_report(tmp_path):
    save_random_checkpoint(tmp_path, byte_tokenizer(), vocab_size=50_000)
    announced = []
    report = run_tree_benchmark(
        checkpoint=tmp_path,
        arranged=[20],
        computed=[10, 20],
        conditions={"cpu": "some"},
        announce=announced.append,
    )
    assert report.ratios["unique_over_requested_tokens"] == pytest.approx(
        (90 + 20 * 30) / (20 * 120), abs=1e-4
    )
    assert len(announced) == 3
    assert report.conditions["cpu"] == "some"
    assert [row.get("requests") for row in report.rows] == [None, 10, 20]
