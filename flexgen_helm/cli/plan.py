"""`flexgen-helm plan`: a policy for a model, a suite and a machine, without torch or weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flexgen_helm.cli.terminal import terminal_width
from flexgen_helm.errors import HardwareError, InvalidSettingError, WorkloadError
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.calibration import measured_profile
from flexgen_helm.specs.catalog import KNOWN_MODELS, find_known
from flexgen_helm.specs.checkpoint_files import fetched_file, is_hub_id, read_json
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.deployment import DTYPE_SUFFIXES, PREFIX, DeploymentSpec
from flexgen_helm.specs.hardware import Hardware, read_hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.opt_sizes import known_spec
from flexgen_helm.specs.shipped import hardware_profiles
from flexgen_helm.specs.workload import RequestLengths, Workload

LENGTHS_SUFFIX = ".lengths.json"
"""Beside a suite's ``.conf``: how many requests its runs have, and how long they are."""


def add_plan_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parsers of `flexgen-helm`."""
    parser = subparsers.add_parser(
        "plan",
        help="say how a suite would be run on a machine, and how long that takes",
        description="Choose the policy that takes the least time, and print it with what is"
        " predicted for each scenario and with what limits it. Neither weights nor a GPU are"
        " needed.",
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="NAME",
        help="as helm-run has it, such as flexgen/opt-30b-w4; a hub id or a directory",
    )
    add(
        "--hardware",
        metavar="NAME",
        help="a profile: one of those that ship, or a file (this machine, as calibrated)",
    )
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument(
        "--suite", type=Path, metavar="CONF", help="run entries, with lengths of their requests"
    )
    work.add_argument(
        "--workload", metavar="N:P/G", help="N requests of P prompt tokens and G new ones"
    )
    add(
        "--compression",
        metavar="LABELS",
        help="such as w4-kv4; several, separated by commas, leave the choice to the planner (what"
        " the model's name says)",
    )
    for tier in ("device", "host", "disk"):
        add(f"--{tier}-memory", metavar="SIZE", help=f"of the {tier} that may be used (all)")
    add("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from flexgen_helm.planner.plan import plan
    from flexgen_helm.tables.plans import plan_text

    hardware = hardware_named(args.hardware)
    workload = read_suite(args.suite) if args.suite else parse_workload(args.workload)
    named = deployment_named(args.model)
    check_dtype(named, hardware)
    spec = spec_named(named.checkpoint)
    check_prompts(workload, spec)
    made = plan(
        spec,
        compressions(named, args.compression),
        hardware,
        workload,
        MemoryBudget(device=args.device_memory, host=args.host_memory, disk=args.disk_memory),
    )
    if args.json:
        about = {"model": args.model, "hardware": hardware.name, "workload": workload.name}
        print(json.dumps({**made.to_dict(), **about}))
    else:
        print(plan_text(made, terminal_width()))
    return 0


def deployment_named(model: str) -> DeploymentSpec:
    """Return what a name means to `helm-run`, with or without ``flexgen/``; a directory is itself.

    Raises:
        InvalidCompressionError: it ends in a compression setting that there is not.
    """
    if (Path(model) / "config.json").is_file():
        return DeploymentSpec(checkpoint=model)
    return DeploymentSpec.parse(PREFIX + model.removeprefix(PREFIX))


def compressions(named: DeploymentSpec, labels: str | None) -> list[Compression]:
    """Return the settings to choose among.

    Raises:
        InvalidSettingError: the model's name has one, and others are given, too.
    """
    if labels is None:
        return [named.compression]
    if named.compression.enabled:
        raise InvalidSettingError(
            f"--compression {labels} is given, and {named.name} says {named.compression.label}"
            " already: leave one of them out"
        )
    return [Compression.parse(label) for label in labels.split(",")]


def check_dtype(named: DeploymentSpec, hardware: Hardware) -> None:
    """Refuse a model that is to compute in what a machine's rates are not for.

    Raises:
        HardwareError: so it is.
    """
    if named.dtype not in ("auto", hardware.dtype):
        raise HardwareError(
            f"{named.name} computes in {named.dtype}, the rates of {hardware.name!r} are for"
            f" {hardware.dtype}: leave out {DTYPE_SUFFIXES[named.dtype]}, or name another profile"
            f" (flexgen-helm calibrate --dtype {named.dtype} makes one)"
        )


def spec_named(checkpoint: str) -> ModelSpec:
    """Return the shape of a checkpoint, without a network.

    Raises:
        InvalidSettingError: it is neither known nor a directory with a `config.json`, and has not
            been fetched from the hub.
        CheckpointError: that is damaged, or no OPT's.
    """
    known = find_known(checkpoint)
    config = Path(known.checkpoint if known else checkpoint) / "config.json"
    if config.is_file():
        return ModelSpec.from_config(read_json(config))
    spec = known_spec(checkpoint)
    if (
        spec is None
        and is_hub_id(checkpoint)
        and (fetched := fetched_file(checkpoint, "config.json"))
    ):
        spec = ModelSpec.from_config(read_json(fetched))
    if spec is None:
        raise InvalidSettingError(
            f"the shape of model {checkpoint!r} is not known: name a directory with its"
            f" config.json, or one of {', '.join(model.name for model in KNOWN_MODELS)}"
        )
    return spec


def check_prompts(workload: Workload, spec: ModelSpec) -> None:
    """Refuse prompts that the engine would refuse.

    Raises:
        WorkloadError: one is longer than the model's positions.
    """
    for lengths in workload:
        if lengths.max_prompt_len > spec.max_positions:
            raise WorkloadError(
                f"prompts of {lengths.name!r} have up to {lengths.max_prompt_len} tokens, the model"
                f" has {spec.max_positions} positions: plan for shorter ones (in HELM: fewer"
                " in-context examples)"
            )


def hardware_named(name: str | None) -> Hardware:
    """Return a hardware profile; without a name, that of this machine.

    Raises:
        HardwareError: there is no such profile.
    """
    if name is None:
        return measured_profile()
    profiles = hardware_profiles()
    file = profiles.get(name, Path(name))
    if not file.is_file():
        raise HardwareError(
            f"hardware {name!r} is neither a file nor a profile that ships: name one of"
            f" {', '.join(profiles)}, or calibrate the machine itself with flexgen-helm calibrate"
        )
    return read_hardware(file)


def read_suite(conf: Path) -> Workload:
    """Return how long the requests of a suite are.

    Raises:
        WorkloadError: nothing says so, or it cannot be read.
    """
    lengths = conf.with_suffix(LENGTHS_SUFFIX)
    if not lengths.is_file():
        raise WorkloadError(
            f"{lengths} is not there, which would say how long the requests of {conf} are: write it"
            " as in scenarios/paper_7.lengths.json, or use --workload"
        )
    try:
        text = lengths.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # or it is no text
        raise WorkloadError(f"{lengths} cannot be read ({error}): write it anew") from error
    return Workload.from_json(text, where=str(lengths))


def parse_workload(text: str) -> Workload:
    """Read ``1000:512/32``.

    Raises:
        WorkloadError: it is no such text.
    """
    try:
        number, lengths = text.split(":")
        prompt_len, new_tokens = map(int, lengths.split("/"))
        requests = RequestLengths(
            name=text,
            num_requests=int(number),
            prompt_len=prompt_len,
            max_prompt_len=prompt_len,
            new_tokens=new_tokens,
            least_filled=1.0,
        )
    except ValueError as error:
        raise WorkloadError(
            f"workload {text!r} is not understood: write it as 1000:512/32, for 1000 requests of"
            " 512 prompt tokens and 32 new ones"
        ) from error
    return Workload(name=text, scenarios=(requests,))
