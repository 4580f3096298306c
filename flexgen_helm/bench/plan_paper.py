"""The FlexGen paper's tables beside what is predicted of them; nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flexgen_helm.bench.predictions import planned, predicted
from flexgen_helm.bench.report import Row
from flexgen_helm.planner.block_load import UPSTREAM
from flexgen_helm.planner.plan import plan
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware, read_hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.opt_sizes import SIZES, known_spec
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.shipped import flexgen_paper, hardware_profiles, scenarios_dir
from flexgen_helm.specs.workload import RequestLengths, Workload

PAPER = "paper"
"""The stage."""

LONG_WORKLOAD = 2000
"""Requests of a workload in which the block may be of any size."""


def paper_rows() -> list[Row]:
    """Predict the cells of the paper's throughput table."""
    paper, hardware = flexgen_paper(), _t4()
    rows: list[Row] = []
    for cell in paper["throughput"]:
        about = _spec(cell["model"]), cell["compression"], hardware
        policy = _policy(cell)
        block = _lengths(cell, num_requests=policy.effective_batch)
        made = predicted(*about, block, policy, execution=UPSTREAM)
        chosen = planned(*about, _lengths(cell, num_requests=LONG_WORKLOAD))
        measured = cell["measured_tokens_per_s"]
        rows.append(
            {
                "model": cell["model"],
                "lengths": f"{cell['prompt_len']}/{cell['new_tokens']}",
                "compression": cell["compression"],
                "measured_tokens_per_s": measured,
                "predicted_tokens_per_s": made.throughput,
                "error": made.throughput / measured - 1,
                "planned_tokens_per_s": chosen.throughput,
                "planned_over_upstream": chosen.throughput / made.throughput,
            }
        )
    return rows


def paper_helm_rows(compression: str = "w4-kv4") -> list[Row]:
    """Predict the paper's HELM table: upstream's way and ours."""
    paper, hardware = flexgen_paper(), _t4()
    suite = Workload.from_json(
        (scenarios_dir() / "paper_7.lengths.json").read_text(), where="paper_7.lengths.json"
    )
    spec = _spec(paper["helm"]["model"])
    ours = plan(spec, [Compression.parse(compression)], hardware, suite)
    rows: list[Row] = []
    for cell, scenario in zip(paper["helm"]["rows"], ours.per_scenario, strict=True):
        assert cell["scenario"] == scenario.scenario, "both list the same scenarios"
        lengths = _lengths(cell, num_requests=cell["num_requests"])
        theirs = predicted(spec, "none", hardware, lengths, _policy(cell), execution=UPSTREAM)
        rows.append(
            {
                "scenario": cell["scenario"],
                "requests": cell["num_requests"],
                "measured_minutes": cell["measured_minutes"],
                "predicted_upstream_minutes": theirs.predicted_s / 60,
                "planned_minutes": scenario.minutes,
                "computed_tokens_upstream": cell["num_requests"] * cell["prompt_len"],
                "unique_tokens": round(scenario.unique_tokens),
                "effective_batch": round(scenario.effective_batch),
            }
        )
    return rows


def _lengths(cell: Mapping[str, Any], *, num_requests: int) -> RequestLengths:
    return RequestLengths(
        name=cell.get("scenario", cell.get("model", "")),
        num_requests=num_requests,
        prompt_len=cell["prompt_len"],
        max_prompt_len=cell["prompt_len"],
        new_tokens=cell["new_tokens"],
    )


def _policy(cell: Mapping[str, Any]) -> Policy:
    tokens = cell["policy"]["micro_batch_size"] * cell["prompt_len"]
    return Policy.from_settings({**cell["policy"], "micro_batch_tokens": tokens})


def _t4() -> Hardware:
    return read_hardware(hardware_profiles()["t4"])


def _spec(model: str) -> ModelSpec:
    spec = known_spec(model)
    assert spec is not None, f"the paper's models are among the sizes {', '.join(SIZES)}"
    return spec
