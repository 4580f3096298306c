"""Reading one run directory into the nested dicts that the columns' sources lead into."""

from __future__ import annotations

import json
import re
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flexgen_helm.errors import FlexGenError, TablesError
from flexgen_helm.notices import FlexGenWarning
from flexgen_helm.specs.deployment import PREFIX, DeploymentSpec
from flexgen_helm.specs.run_record import RUN_RECORD_FILE, RunRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from flexgen_helm.tables.columns import Sources

_SCENARIO = re.compile(r"(?P<scenario>[^:,=]+?)(?:_[^_:,=]+=.*|[:,].*)?")
"""A run name begins with what stands in the run entry: ``mmlu:subject=...``, ``legal_support,...``;
``dyck_language_np=3`` is the one name HELM builds otherwise."""

_ABOUT_PERTURBATIONS = {"name", "robustness", "fairness", "computed_on"}
"""Fields every perturbation has; the others (``prob``, ``seed``, ...) tell two of a kind apart."""


def read_run(directory: Path) -> Sources:
    """Which run it is, of which model, and what our runner recorded of its cost, if it did."""
    with reading(directory / "run_spec.json") as path:
        spec = json.loads(path.read_text(encoding="utf-8"))
        adapter = spec["adapter_spec"]
        deployment = _deployment(adapter.get("model_deployment") or adapter["model"])
        run = {
            "suite": directory.parent.name,
            "name": directory.name,
            "task": task_of(directory.name),
            "scenario": scenario_of(directory.name),
            "scenario_args": _joined(spec["scenario_spec"].get("args", {})),
        }
    return {"run": run, "deployment": deployment, "flexgen_run": _record(directory)}


def read_statistics(directory: Path) -> list[Sources]:
    """One mapping per statistic, sorted, no two of the same name.

    Warns:
        FlexGenWarning: HELM wrote a statistic twice with different values; the first is kept.
    """
    with reading(directory / "stats.json") as path:
        by_name: dict[tuple[str, ...], Sources] = {}
        for stat in json.loads(path.read_text(encoding="utf-8")):
            perturbation = stat["name"].get("perturbation")
            sources = {"stats": stat, "perturbation": {"label": _perturbation_label(perturbation)}}
            if by_name.setdefault(_sort_key(sources), sources)["stats"] != stat:
                warnings.warn(
                    f"{path} holds different values of {stat['name']}: the first is kept",
                    FlexGenWarning,
                    stacklevel=2,
                )
    return [by_name[key] for key in sorted(by_name)]


def read_scenario_state(directory: Path) -> Sources:
    """What HELM's own record of requests and results tells about cost, whichever client ran."""
    with reading(directory / "scenario_state.json") as path:
        states = json.loads(path.read_text(encoding="utf-8"))["request_states"]
        results = [(state["request"], state["result"]) for state in states if "result" in state]
        return {
            "requests": len(states),
            "generated_tokens": sum(_generated_tokens(*pair) for pair in results),
            "request_s": sum(result.get("request_time") or 0.0 for _, result in results),
        }


def task_of(run_name: str) -> str:
    """A run's name without its model: what is asked, and therefore what can be compared."""
    return without_arguments(run_name, "model", "model_deployment")


def without_arguments(run_name: str, *names: str) -> str:
    """The name of a run, or its run entry, without some of its arguments."""
    head, _, arguments = run_name.partition(":")
    dropped = tuple(f"{name}=" for name in names)
    kept = [x for x in arguments.split(",") if x and not x.startswith(dropped)]
    return f"{head}:{','.join(kept)}" if kept else head


def scenario_of(run_name: str) -> str:
    """The scenario as a run entry names it: ``mmlu:subject=anatomy,model=m`` -> ``mmlu``."""
    match = _SCENARIO.fullmatch(run_name)
    return match["scenario"] if match else run_name


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Every way a file can be unlike what HELM or our runner writes is one error that names it."""
    try:
        yield path
    except FlexGenError as error:
        raise TablesError(f"{path} cannot be tabulated: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TablesError(
            f"{path} is damaged or from another version ({type(error).__name__}: {error}), expected"
            f" is the JSON that helm-run writes: delete its run directory and rerun helm-run"
        ) from error


def _deployment(name: str) -> Sources:
    """Only our own names tell compression and dtype; any other is a model of that name."""
    if not name.startswith(PREFIX):
        return {"name": name, "model": name}
    spec = DeploymentSpec.parse(name)
    compression = spec.compression
    return {
        "name": name,
        "model": spec.checkpoint,
        "compression": compression.label,
        "weight_bits": compression.weight_bits,
        "cache_bits": compression.cache_bits,
        "group_size": compression.group_size if compression.quantized else None,
        "attention_percent": compression.attention_percent,
        "dtype": spec.dtype,
    }


def _record(directory: Path) -> Sources | None:
    with reading(directory / RUN_RECORD_FILE) as path:
        if not path.exists():
            return None
        record = RunRecord.from_json(path.read_text(encoding="utf-8"))
        return {
            **asdict(record),
            "request_s": record.prefill_s + record.decode_s,
            "throughput": record.throughput,
            "unique_ratio": record.unique_ratio,
            "mean_decode_rows": record.mean_decode_rows,
            "cache_bytes_per_token": (
                record.cache_bytes / record.cached_tokens if record.cached_tokens else None
            ),
        }


def _generated_tokens(request: Mapping[str, Any], result: Mapping[str, Any]) -> int:
    """An echoed prompt is among the tokens of a completion, hence the limit."""
    limit = request["max_tokens"]
    return sum(min(len(completion["tokens"]), limit) for completion in result["completions"])


def _perturbation_label(perturbation: Mapping[str, Any] | None) -> str | None:
    """``typos:prob=0.1``, or the bare name where it has no arguments."""
    if perturbation is None:
        return None
    arguments = {k: v for k, v in perturbation.items() if k not in _ABOUT_PERTURBATIONS}
    return ":".join(filter(None, [perturbation["name"], _joined(arguments)]))


def _sort_key(sources: Sources) -> tuple[str, ...]:
    name = sources["stats"]["name"]
    return (
        name["name"],
        name.get("split") or "",
        name.get("sub_split") or "",
        sources["perturbation"]["label"] or "",
        (name.get("perturbation") or {}).get("computed_on") or "",
    )


def _joined(arguments: Mapping[str, Any]) -> str | None:
    """Arguments as HELM writes them; a run without any has a missing cell, also after CSV."""
    return ",".join(f"{key}={value}" for key, value in sorted(arguments.items())) or None
