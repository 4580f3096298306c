"""What `bench helm` runs: kinds of work, as HELM run entries, and the data they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexgen_helm.errors import BenchmarkError
from flexgen_helm.staging.stage import stage

TOKENIZER = "opt-tokenizer"
"""Directory of OPT's tokenizer files."""

NLTK_DATA = "nltk_data"
"""Directory of nltk's punkt_tab, without which HELM tries to download it in every run."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A `helm-run` of one run entry."""

    name: str
    """What flags and reports call it."""

    entry: str
    """HELM run entry without its model."""

    scenario: str
    """HELM's name of the scenario, and of the directory where it keeps its data."""

    generated: bool = False
    """Whether HELM makes up the data itself."""


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="natural",
            entry="synthetic_reasoning_natural:difficulty=easy",
            scenario="synthetic_reasoning_natural",
            generated=True,
        ),
        Suite(name="mmlu", entry="mmlu:subject=us_foreign_policy", scenario="mmlu"),
        # Greedy, where HELM's entry samples: samples of two clients could not be compared.
        Suite(
            name="summarization",
            entry="summarization_xsum_rouge:temperature=0",
            scenario="summarization",
        ),
        Suite(name="algebra", entry="mmlu:subject=abstract_algebra", scenario="mmlu"),
        Suite(
            name="pattern-match",
            entry="synthetic_reasoning:mode=pattern_match",
            scenario="synthetic_reasoning",
            generated=True,
        ),
        Suite(name="plaintiff", entry="wikifact:k=5,subject=plaintiff", scenario="wikifact"),
        Suite(name="instance-of", entry="wikifact:k=5,subject=instance_of", scenario="wikifact"),
    )
}
"""The FlexGen paper's seven sub-scenarios, as far as they run without network."""

DEFAULT = ["natural", "mmlu", "summarization"]
"""Long prompts and some tokens to generate; one token; very long prompts and many tokens."""


def require_data(data: Path, suites: Sequence[Suite]) -> None:
    """Check that all data is there before anything runs.

    Raises:
        BenchmarkError: names what is missing and who needs it.
    """
    needed = {TOKENIZER: "every suite", NLTK_DATA: "every suite"}
    needed |= {suite.scenario: f"suite {suite.name}" for suite in suites if not suite.generated}
    missing = {name: who for name, who in needed.items() if not (data / name).is_dir()}
    if missing:
        listed = ", ".join(f"{name}/ (needed by {who})" for name, who in missing.items())
        raise BenchmarkError(
            f"{data} has no {listed}: name a directory that has with --data, laid out as HELM's"
            f" benchmark_output/scenarios, or choose other suites with --suites"
        )


def stage_data(suite: Suite, *, data: Path, output: Path) -> None:
    """Put a suite's data where HELM would download it to.

    Raises:
        StagingError: they are not what HELM reads.
    """
    if not suite.generated:
        stage(suite.scenario, str(data), output / "scenarios")
