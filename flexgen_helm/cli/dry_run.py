"""``--dry-run``: which runs a command would make, and where they go; none is made."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flexgen_helm.cli.helm_process import helm_arguments, log_of, torn_files
from flexgen_helm.cli.run import helm_command
from flexgen_helm.cli.terminal import terminal_width
from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.deployment import DeploymentSpec
from flexgen_helm.tables.run_directories import is_complete

if TYPE_CHECKING:
    from helm.benchmark.run_spec import RunSpec


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add the flag."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say which runs would be made, and what is there already; nothing is run or written",
    )


def print_runs(
    suite: str, arguments: Sequence[str], options: argparse.Namespace, tables: Path
) -> None:
    """Print the runs that `suite_runs` would make of the same arguments, and where they go."""
    from flexgen_helm.adapter.needs import missing_data
    from flexgen_helm.tables.columns import frame_of
    from flexgen_helm.tables.planned_runs import PLANNED_RUNS
    from flexgen_helm.tables.render import text_table
    from flexgen_helm.tables.sources import task_of

    runs: Path = options.output_path / "runs" / suite
    given = helm_arguments(suite, arguments, options)
    specs = run_specs(given)
    torn = {file.parent for file in torn_files(runs)}
    done = {path.name for path in runs.glob("*:*") if is_complete(path) and path not in torn}
    deployments = [DeploymentSpec.parse(spec.adapter_spec.model_deployment) for spec in specs]
    rows = [
        {
            **vars(spec.adapter_spec),
            "task": task_of(spec.name),
            "model": deployment.checkpoint,
            "compression": deployment.compression.label,
            "done": "yes" if spec.name in done else "no",
        }
        for spec, deployment in zip(specs, deployments, strict=True)
    ]
    left = [spec.name for spec in specs if spec.name not in done]
    print(text_table(frame_of(PLANNED_RUNS, rows), PLANNED_RUNS, terminal_width()))
    print(f"\nleft to do  {len(left)} of {len(specs)} runs")
    for scenario, files in missing_data(left, options.output_path / "scenarios").items():
        print(f"not here    {', '.join(files)} of {scenario}: HELM would download them")
    print(f"command     {shlex.join(helm_command(given))}")
    print(f"runs        {runs}")
    print(f"tables      {tables}")
    print(f"log         {log_of(suite, options)}")


def run_specs(arguments: Sequence[str]) -> list[RunSpec]:
    """Return the runs that `helm-run` would make with some arguments.

    Raises:
        DeploymentError: one of the models is none.
        InvalidSettingError: HELM does not understand an entry.
    """
    from helm.benchmark.config_registry import register_configs_from_directory
    from helm.benchmark.model_deployment_registry import get_model_deployment
    from helm.benchmark.presentation.run_entry import RunEntry, read_run_entries
    from helm.benchmark.run import build_parser, run_entries_to_run_specs
    from helm.benchmark.runner import set_benchmark_output_path

    args = build_parser().parse_args(arguments)
    register_configs_from_directory(args.local_path)
    import flexgen_helm.plugin  # noqa: F401 - leaves what is registered before as it is

    for model in args.models_to_run:
        get_model_deployment(model)
    set_benchmark_output_path(args.output_path)
    entries = [RunEntry(description=entry, priority=1) for entry in args.run_entries]
    if args.conf_paths:
        entries += read_run_entries(args.conf_paths).entries
    specs: list[RunSpec] = []
    for entry in entries:
        try:
            specs += run_entries_to_run_specs(
                [entry],
                max_eval_instances=args.max_eval_instances,
                num_train_trials=args.num_train_trials,
                models_to_run=args.models_to_run,
            )
        except Exception as error:  # HELM passes what an entry says on to Python functions
            raise InvalidSettingError(
                f"HELM makes no run of the entry {entry.description!r} ({error}): correct it, or"
                " leave it out"
            ) from error
    return specs
