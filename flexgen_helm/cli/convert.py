"""`flexgen-helm convert`: makes the weight store a model larger than memory is run from."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from flexgen_helm.cli.writing import writing
from flexgen_helm.errors import InvalidSettingError
from flexgen_helm.specs.compression import DEFAULT_GROUP_SIZE, Compression
from flexgen_helm.units import format_bytes


def add_convert_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parsers of `flexgen-helm`."""
    parser = subparsers.add_parser(
        "convert",
        help="make the weight store that offloaded models are run from",
        description="Convert a checkpoint, tensor by tensor, into a weight store: a file for each"
        " layer, in the precision it will be computed from. The engine does the same when it first"
        " needs one. A conversion that was interrupted goes on where it was.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="hub id or directory; with --dummy a size such as opt-30b"
    )
    parser.add_argument("--offload-dir", type=Path, help="where stores are (~/.cache/flexgen_helm)")
    parser.add_argument("--weight-bits", type=int, help="8, 4, 3 or 2 (no compression)")
    parser.add_argument("--group-size", type=int, default=DEFAULT_GROUP_SIZE, help="(%(default)s)")
    parser.add_argument(
        "--dtype", default="auto", help="of what is not compressed (the fastest of this machine)"
    )
    parser.add_argument(
        "--dummy",
        action="store_true",
        help="random weights, to measure the speed of a model that is not at hand",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="directory of OPT's tokenizer, for --dummy"
    )
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> int:
    """Carry out the command."""
    # Before torch is imported, which takes seconds.
    compression = Compression(weight_bits=args.weight_bits, group_size=args.group_size)

    from tqdm import tqdm

    from flexgen_helm.model.checkpoint import read_spec, resolve
    from flexgen_helm.model.dtypes import device_of, resolve_device, resolve_dtype
    from flexgen_helm.model.opening import DEFAULT_OFFLOAD_DIR, open_store

    dtype, device = resolve_dtype(args.dtype), device_of(resolve_device("auto"))
    offload_dir = (args.offload_dir or DEFAULT_OFFLOAD_DIR).expanduser()
    path = (
        make_dummy(
            args.model, args.tokenizer, offload_dir / f"dummy-{args.model}", option="--offload-dir"
        )
        if args.dummy
        else resolve(args.model)
    )
    spec = read_spec(path)
    with tqdm(total=spec.num_layers + 1, unit="layer", desc=f"converting {args.model}") as bar:
        store = open_store(
            path,
            spec,
            compression,
            dtype=dtype,
            device=device,
            offload_dir=offload_dir,
            on_part=partial(bar.update, 1),
        )
    print(f"checkpoint  {path}")
    print(f"store       {store.directory}")
    print(f"size        {format_bytes(store.num_bytes)}")
    return 0


def make_dummy(size: str, tokenizer: Path | None, directory: Path, *, option: str) -> Path:
    """Make a dummy checkpoint in a directory that an option names; return the directory.

    Raises:
        InvalidSettingError: there is no such size, or no tokenizer, or it cannot be written.
    """
    from flexgen_helm.model.dummy import write_dummy

    if tokenizer is None:
        raise InvalidSettingError(
            "--dummy needs a tokenizer: name a directory that has OPT's with --tokenizer"
        )
    with writing(directory, option):
        return write_dummy(size, tokenizer=tokenizer, directory=directory)
