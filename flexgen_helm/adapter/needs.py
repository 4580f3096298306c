"""What a suite needs that is not here, looked for before a model is loaded.

HELM downloads it when a run comes to it, and where there is no network a run fails for each file,
after minutes of further tries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from helm.benchmark.model_deployment_registry import get_model_deployment
from helm.benchmark.tokenizer_config_registry import get_tokenizer_config

from flexgen_helm.adapter.offline import answers_request
from flexgen_helm.errors import CheckpointError, StagingError
from flexgen_helm.specs.checkpoint_files import is_fetched, is_hub_id
from flexgen_helm.staging.layouts import LAYOUTS, files_of_entry, missing_files, scenario_of_entry

AnswersRequest = Callable[[str], bool]
"""Whether a request for a URL is answered."""


def require_data(
    runs: Iterable[str], output_path: Path, answers_request: AnswersRequest = answers_request
) -> None:
    """Refuse runs whose data are neither here nor to be had.

    Args:
        runs: their names.
        output_path: of HELM.
        answers_request: what is asked where something is missing.

    Raises:
        StagingError: some data are missing, and what HELM would download them from is out of reach.
    """
    missing = missing_data(runs, output_path / "scenarios")
    urls = {scenario: LAYOUTS[scenario].url for scenario in missing}
    away = out_of_reach(urls.values(), answers_request)
    lost = [scenario for scenario in missing if urls[scenario] in away]
    if lost:
        files = "; ".join(f"{scenario}: {', '.join(missing[scenario])}" for scenario in lost)
        hosts = ", ".join(dict.fromkeys(urlsplit(urls[scenario]).netloc for scenario in lost))
        raise StagingError(
            f"{output_path / 'scenarios'} lacks data ({files}), and {hosts} cannot be reached: run"
            f" flexgen-helm stage {' '.join(lost)} -o {output_path} --from hub on a machine with a"
            " network and copy them here, or here with --from a directory that has them"
        )


def missing_data(runs: Iterable[str], scenarios: Path) -> dict[str, list[str]]:
    """Return the files that are not there, by scenario, of those scenarios whose files are known.

    Args:
        runs: names of runs.
        scenarios: HELM's directory of scenarios' data.
    """
    missing: dict[str, dict[str, None]] = {}
    for run in runs:
        scenario = scenario_of_entry(run)
        if scenario in LAYOUTS:
            files = missing_files(scenarios / scenario, LAYOUTS[scenario], files_of_entry(run))
            missing.setdefault(scenario, {}).update(dict.fromkeys(files))
    return {scenario: list(files) for scenario, files in missing.items() if files}


def require_checkpoints(
    deployments: Iterable[str], answers_request: AnswersRequest = answers_request
) -> None:
    """Refuse deployments of whose checkpoint or tokenizer there is nothing here, nor to be had.

    Args:
        deployments: their names.
        answers_request: what is asked where something is missing.

    Raises:
        CheckpointError: one is on the hub only, which is out of reach.
    """
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    sources = dict.fromkeys(source for name in deployments for source in _sources(name))
    missing = [source for source in sources if is_hub_id(source) and not _is_here(source)]
    if missing and (HF_HUB_OFFLINE or not answers_request(ENDPOINT)):
        raise CheckpointError(
            f"{' and '.join(missing)} of the hub has not been fetched, and {ENDPOINT} cannot be"
            f" reached: run hf download {missing[0]} on a machine with a network and copy its cache"
            " here (HF_HOME names it), or name a local directory (model=flexgen//path/to/it)"
        )


def _sources(deployment: str) -> list[str]:
    """Hub ids or directories of a deployment's checkpoint and of its tokenizer."""
    known = get_model_deployment(deployment)
    tokenizer = get_tokenizer_config(known.tokenizer_name or known.name)
    named: list[Mapping[str, object]] = [known.client_spec.args]
    if tokenizer is not None:
        named.append(tokenizer.tokenizer_spec.args)
    keys = ("checkpoint", "pretrained_model_name_or_path")
    return [str(args[key]) for args in named for key in keys if key in args]


def _is_here(source: str) -> bool:
    return Path(source).is_dir() or is_fetched(source)


def out_of_reach(urls: Iterable[str], answers_request: AnswersRequest) -> set[str]:
    """Return those URLs that cannot be reached."""
    distinct = list(dict.fromkeys(urls))
    with ThreadPoolExecutor(max(1, len(distinct))) as threads:
        answers = dict(zip(distinct, threads.map(answers_request, distinct), strict=True))
    return {url for url, answer in answers.items() if not answer}
