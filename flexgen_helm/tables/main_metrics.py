"""Which metric of a scenario is *the* score."""

from __future__ import annotations

_SCENARIOS_BY_METRIC = {
    "exact_match": ("blimp", "commonsense", "mmlu", "truthful_qa"),
    "exact_match_indicator": ("dyck_language", "gsm"),
    "quasi_exact_match": (
        "babi_qa",
        "bbq",
        "boolq",
        "civil_comments",
        "entity_data_imputation",
        "entity_matching",
        "imdb",
        "legal_support",
        "legalbench",
        "lsat_qa",
        "med_qa",
        "raft",
        "synthetic_reasoning",
        "wikifact",
    ),
    "f1_score": ("narrative_qa", "natural_qa", "quac"),
    "f1_set_match": ("synthetic_reasoning_natural",),
    "rouge_2": (
        "legal_summarization",
        "summarization_cnndm",
        "summarization_xsum",
        "summarization_xsum_rouge",
        "summarization_xsum_sampled",
    ),
    "bleu_4": ("wmt_14",),
    "RR@10": ("msmarco",),
    "bits_per_byte": ("ice", "the_pile", "twitter_aae", "wikitext_103"),
}

MAIN_METRIC = {
    scenario: metric for metric, scenarios in _SCENARIOS_BY_METRIC.items() for scenario in scenarios
}
"""Scenario, as a run entry names it, to ``main_name`` of its group in HELM's
``schema_classic.yaml``. ``wikitext_103`` is not in there; HELM has one metric for all text to be
predicted."""

FALLBACK_METRICS = (
    "exact_match",
    "quasi_exact_match",
    "quasi_prefix_exact_match",
    "f1_score",
    "rouge_2",
    "rouge_l",
    "bleu_4",
    "math_equiv_chain_of_thought",
    "math_equiv",
    "final_number_exact_match",
    "exact_match_indicator",
    "pass",
    "bits_per_byte",
)
"""Tried in this order for other scenarios, and where a run lacks the main metric of its scenario.
Every generating run has bits per byte (of what it generated), so it comes last."""

UNBOUNDED_METRICS = frozenset({"bits_per_byte", "logprob", "logprob_per_byte", "perplexity"})
"""Metrics that are no parts of 1, or the better the smaller: no mean over scenarios has them."""

SPLITS = ("test", "valid", "")
"""Split a score is taken from, the first that a run has; empty: a metric over the whole run."""


def candidates(scenario: str) -> tuple[str, ...]:
    """Metrics to look for in a run of `scenario`, best first."""
    main = MAIN_METRIC.get(scenario)
    return (main, *FALLBACK_METRICS) if main else FALLBACK_METRICS
