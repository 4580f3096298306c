"""`flexgen-helm run`: `helm-run` with our runner."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import yaml

from flexgen_helm.adapter.engine_process import (
    ENGINE_PROCESS,
    RUNNER,
    asks_for_help,
    wants_engine,
)
from flexgen_helm.adapter.garbage import rare_collections
from flexgen_helm.adapter.limits import MEMORY_VARIABLES, set_limits
from flexgen_helm.errors import FlexGenError

RUNNER_FLAG = "--runner-class-name"
NO_PREFIX = "\0"
"""An argument parser with this for a prefix takes every argument, flags too, as a plain one."""


def add_run_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parsers of `flexgen-helm`."""
    parser = subparsers.add_parser(
        "run",
        help="run HELM benchmarks: helm-run with our runner; takes all of its arguments, and"
        " --device-memory, --host-memory, --disk-memory and --offload-dir",
        add_help=False,
        prefix_chars=NO_PREFIX,
    )
    parser.add_argument("helm_arguments", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run_run)


def run_run(args: argparse.Namespace) -> int:
    """Carry out the command; 1 if runs failed."""
    parser = limit_parser()
    limits, helm_arguments = parser.parse_known_args(args.helm_arguments)
    apply_limits(limits)
    command = helm_command(helm_arguments)
    if asks_for_help(command):
        print(parser.format_help())
    print(f"Equivalent to: {shlex.join(command)}", flush=True)
    if wants_engine(command):
        ENGINE_PROCESS.start()  # it imports torch while this process imports HELM
    with rare_collections(), _arguments(command), fast_yaml():
        return _helm_run()


def limit_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments that are ours; `helm-run` gets the rest."""
    parser = argparse.ArgumentParser(
        prog="flexgen-helm run",
        usage="%(prog)s [our arguments] [arguments of helm-run]",
        description="Run HELM benchmarks: helm-run with our runner, whose own help is below.",
        add_help=False,
        allow_abbrev=False,
    )
    add_limits(parser.add_argument_group("our arguments, in which it differs from helm-run"))
    return parser


def add_limits(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what memory may be used, and where what is offloaded goes."""
    for tier in MEMORY_VARIABLES:
        parser.add_argument(
            f"--{tier}-memory", metavar="SIZE", help=f"of the {tier} that may be used"
        )
    parser.add_argument(
        "--offload-dir", metavar="DIR", help="for weight stores and what is spilled"
    )


def apply_limits(options: argparse.Namespace) -> None:
    """Have these limits, as `add_limits` has them, hold from now on.

    Raises:
        InvalidSettingError: a size is not understood.
    """
    sizes = {tier: getattr(options, f"{tier}_memory") for tier in MEMORY_VARIABLES}
    set_limits(sizes, options.offload_dir)


def _helm_run() -> int:
    from helm.benchmark.run import main
    from helm.benchmark.runner import RunnerError

    try:
        main()
    except (RunnerError, FlexGenError) as error:
        print(f"flexgen-helm run: {error}", file=sys.stderr)
        return 1
    return 0


def helm_command(arguments: Sequence[str]) -> list[str]:
    """Return the `helm-run` command line: our runner, unless one is named, and the arguments."""
    named = any(a == RUNNER_FLAG or a.startswith(f"{RUNNER_FLAG}=") for a in arguments)
    return ["helm-run", *([] if named else [RUNNER_FLAG, RUNNER]), *arguments]


@contextmanager
def _arguments(command: list[str]) -> Iterator[None]:
    """Let a `main` without parameters see another command line."""
    saved, sys.argv = sys.argv, command
    try:
        yield
    finally:
        sys.argv = saved


@contextmanager
def fast_yaml() -> Iterator[None]:
    """Let `yaml.safe_load` use libyaml, where PyYAML was built with it.

    HELM reads 600 kB of YAML before it runs anything, a second's work for PyYAML's own parser and a
    sixth of that for libyaml's, which yields the same. There is no other way to choose it for
    somebody else's call.
    """
    saved = yaml.SafeLoader
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", saved)  # type: ignore[misc]
    try:
        yield
    finally:
        yaml.SafeLoader = saved  # type: ignore[misc]
