"""Run entries of ours: HELM's summarization, scored without downloads."""

from __future__ import annotations

from dataclasses import replace

from helm.benchmark.metrics.common_metric_specs import get_basic_metric_specs
from helm.benchmark.run_spec import RunSpec, run_spec_function

NAME = "summarization_xsum_rouge"
ROUGE = ("rouge_1", "rouge_2", "rouge_l")


def get_xsum_rouge_spec() -> RunSpec:
    """HELM's ``summarization_xsum_sampled`` in every respect but the metrics.

    HELM's own summarization metric also reports extractiveness and faithfulness. For that it needs
    an extra that pulls in an old torch, a spaCy model, and two files it downloads when it scores.

    The temperature is HELM's 0.3. A ``temperature=`` in the run entry is taken by a run expander of
    HELM's, which changes the requests but never the run's name; so the name does not mention it.
    """
    # Importing HELM's run specs takes a while, and helm-run does it only when it needs one.
    from helm.benchmark.run_specs.classic_run_specs import get_xsum_sampled_summarization_spec

    return replace(
        get_xsum_sampled_summarization_spec(),
        name=NAME,
        metric_specs=get_basic_metric_specs(list(ROUGE)),
    )


run_spec_function(NAME)(get_xsum_rouge_spec)
