"""The unique-token ratio of the tables against a count from HELM's own record of the prompts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from flexgen_helm import efficiency
from flexgen_helm.embedded import checkpoint_path

ENTRIES = [
    "dyck_language:num_parenthesis_pairs=3",
    "synthetic_reasoning_natural:difficulty=easy",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unique")
    entries = [f"{entry},model=flexgen/opt-embedded" for entry in ENTRIES]
    finished = subprocess.run(
        [
            *(Path(sys.executable).parent / "flexgen-helm", "run", "--run-entries", *entries),
            *[
                "--suite",
                "s",
                "-m",
                "15",
                "-t",
                "2",
                "--output-path",
                "out",
                "--local-path",
                "prod_env",
            ],
        ],
        cwd=directory,
        env={k: v for k, v in os.environ.items() if k != "NLTK_DATA"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return directory / "out"


def distinct_prefixes(directory):
    """Tokens of the trie of a run's prompts, and tokens of its prompts."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    states = json.loads((directory / "scenario_state.json").read_text())["request_states"]
    prompts = [tuple(tokenizer(state["request"]["prompt"]).input_ids) for state in states]
    unique = {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}
    return unique, sum(map(len, prompts))


def test_the_ratio_is_that_of_the_prompts_trie(output):
    costs = efficiency(output).set_index("run")
    assert len(costs) == len(ENTRIES)
    counts = {run: distinct_prefixes(output / "runs" / "s" / run) for run in costs.index}
    everything = set().union(*(unique for unique, _ in counts.values()))
    assert costs["computed_prompt_tokens"].sum() == pytest.approx(len(everything))
    for run, (unique, requested) in counts.items():
        assert costs.loc[run, "prompt_tokens"] == requested
        # Of the two or three tokens that both runs begin with each pays a part.
        assert costs.loc[run, "unique_ratio"] == pytest.approx(
            len(unique) / requested, abs=3 / requested
        )


def test_no_product_computes_padding_and_decode_is_batched(output):
    costs = efficiency(output)
    assert (costs["padding_rows"] == 0).all()
    assert (costs["mean_decode_rows"] > 10).all()
