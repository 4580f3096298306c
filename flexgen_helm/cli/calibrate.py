"""`flexgen-helm calibrate`: measures this machine, for the planner."""

from __future__ import annotations

import argparse
from pathlib import Path

from flexgen_helm.cli.writing import writing
from flexgen_helm.files import check_writable, write_text_atomically
from flexgen_helm.specs.calibration import profile_path
from flexgen_helm.units import format_bytes


def add_calibrate_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parsers of `flexgen-helm`."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure what this machine can do, for plans and their predictions",
        description="Measure rates of products, attention, quantization, copies and the disk, in"
        " a minute or two, and save them. Let nothing else run meanwhile.",
    )
    add = parser.add_argument
    add("--offload-dir", type=Path, help="on the disk to measure (~/.cache/flexgen_helm)")
    add("--device", default="auto", help="cpu, cuda, or auto (%(default)s)")
    add("--dtype", default="auto", help="compute dtype (the fastest of this machine)")
    add("--out", type=Path, help=f"file to write ({profile_path()})")
    parser.set_defaults(run=run_calibrate)


def run_calibrate(args: argparse.Namespace) -> int:
    """Carry out the command."""
    from flexgen_helm.model.opening import DEFAULT_OFFLOAD_DIR
    from flexgen_helm.runtime.calibration import calibrate

    out = args.out or profile_path()
    directory = (args.offload_dir or DEFAULT_OFFLOAD_DIR).expanduser()
    with writing(out, "--out"):
        check_writable(out)
    hardware = calibrate(directory, device=args.device, dtype=args.dtype, progress=True)
    with writing(out, "--out"):
        write_text_atomically(out, hardware.to_json())
    for numbers, curve in hardware.product_flop_per_s.curves:
        products = ", ".join(f"{rate / 1e9:.0f} at {rows:g}" for rows, rate in curve.points)
        print(
            f"products      with {numbers / 1e6:.1f} million numbers: {products} rows, GFLOP/s in"
            f" {hardware.dtype}"
        )
    print(f"attention     {hardware.attention_flop_per_s / 1e9:.0f} GFLOP/s in prefill")
    rates = {
        "decode": hardware.device_attention_bytes_per_s,
        "disk read": hardware.disk_read_bytes_per_s,
        "disk write": hardware.disk_write_bytes_per_s,
    }
    for name, rate in rates.items():
        print(f"{name:<13} {format_bytes(rate)}/s")
    weights = [rate / 1e9 for _, rate in hardware.dequantized_weights_per_s.points]
    print(
        f"dequantizing  {min(weights):.2f} to {max(weights):.2f} (weights),"
        f" {hardware.dequantized_cache_per_s / 1e9:.2f} (cache) billion numbers/s"
    )
    print(f"contention    {hardware.contention:.2f}")
    print(f"profile       {out}")
    return 0
