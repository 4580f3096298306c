from importlib.metadata import files
from pathlib import Path

import pytest
import yaml

from flexgen_helm.cli.entries import read_entries
from flexgen_helm.specs.shipped import scenarios_dir
from flexgen_helm.tables.main_metrics import FALLBACK_METRICS, MAIN_METRIC, SPLITS, candidates

NAMED_OTHERWISE = {
    "commonsense",
    "legal_summarization",
    "msmarco",
    "natural_qa",
    "summarization_xsum_rouge",
    "summarization_xsum_sampled",
    "wikitext_103",
}
"""Run entries whose group in HELM's schema has another name, or none."""


@pytest.fixture(scope="module")
def environments():
    """Main metric and split of each group, from the installed HELM."""
    schema = next(f for f in files("crfm-helm") if f.name == "schema_classic.yaml")
    groups = yaml.safe_load(Path(schema.locate()).read_text(encoding="utf-8"))["run_groups"]
    return {group["name"]: group["environment"] for group in groups if "environment" in group}


def test_main_metrics_are_those_of_helm(environments):
    ours = {name: metric for name, metric in MAIN_METRIC.items() if name not in NAMED_OTHERWISE}
    assert ours == {name: environments[name]["main_name"] for name in ours}


def test_groups_of_the_entries_named_otherwise(environments):
    group_of = {
        "commonsense": "hellaswag",
        "legal_summarization": "billsum_legal_summarization",
        "msmarco": "msmarco_regular",
        "natural_qa": "natural_qa_closedbook",
        "summarization_xsum_rouge": "summarization_xsum",
        "summarization_xsum_sampled": "summarization_xsum",
    }
    assert {name: MAIN_METRIC[name] for name in group_of} == {
        name: environments[group]["main_name"] for name, group in group_of.items()
    }


def test_main_splits_are_among_ours(environments):
    assert {environments[name]["main_split"] for name in MAIN_METRIC if name in environments} <= {
        *SPLITS
    }


@pytest.mark.parametrize("conf", sorted(scenarios_dir().glob("*.conf")), ids=lambda path: path.stem)
def test_entries_of_this_repository_have_one(conf):
    names = {entry.partition(":")[0] for entry in read_entries(conf)}
    assert names <= MAIN_METRIC.keys()


def test_the_main_metric_comes_first_and_bits_per_byte_last():
    assert candidates("summarization_xsum") == ("rouge_2", *FALLBACK_METRICS)
    assert candidates("my_scenario") == FALLBACK_METRICS
    assert FALLBACK_METRICS[-1] == "bits_per_byte"
