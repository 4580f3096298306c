"""`flexgen-helm plan`: a policy for a model, a suite and a machine, without torch or weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flexgen_helm.errors import InvalidSettingError, WorkloadError
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.calibration import measured_profile
from flexgen_helm.specs.checkpoint_files import read_json
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware, read_hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.opt_sizes import SIZES, known_spec
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
    add("--model", required=True, help="hub id such as facebook/opt-30b, or a directory")
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
        default="none",
        metavar="LABELS",
        help="such as w4-kv4; several, separated by commas, leave the choice to the planner (none)",
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
    spec = spec_named(args.model)
    check_prompts(workload, spec)
    made = plan(
        spec,
        [Compression.parse(label) for label in args.compression.split(",")],
        hardware,
        workload,
        MemoryBudget(device=args.device_memory, host=args.host_memory, disk=args.disk_memory),
    )
    if args.json:
        about = {"model": args.model, "hardware": hardware.name, "workload": workload.name}
        print(json.dumps({**made.to_dict(), **about}))
    else:
        print(plan_text(made))
    return 0


def spec_named(model: str) -> ModelSpec:
    """Return the shape of a model.

    Raises:
        InvalidSettingError: it is neither known nor a directory with a `config.json`.
        CheckpointError: that is damaged, or no OPT's.
    """
    config = Path(model) / "config.json"
    if config.is_file():
        return ModelSpec.from_config(read_json(config))
    spec = known_spec(model)
    if spec is None:
        raise InvalidSettingError(
            f"the shape of model {model!r} is not known: name a directory with its config.json, or"
            f" facebook/opt-SIZE with one of the sizes {', '.join(SIZES)}"
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
    return read_hardware(hardware_profiles().get(name, Path(name)))


def read_suite(conf: Path) -> Workload:
    """Return how long the requests of a suite are.

    Raises:
        WorkloadError: nothing says so.
    """
    lengths = conf.with_suffix(LENGTHS_SUFFIX)
    if not lengths.is_file():
        raise WorkloadError(
            f"{lengths} is not there, which would say how long the requests of {conf} are: write it"
            " as in scenarios/paper_7.lengths.json, or use --workload"
        )
    return Workload.from_json(lengths.read_text(), where=str(lengths))


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
