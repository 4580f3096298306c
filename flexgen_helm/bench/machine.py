"""What this machine can do at most: its rate of matrix products, and of reading a store.

Run as a process, as trials are: prints a `MachineRow` as JSON. Makes the weight store if need be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from flexgen_helm.specs.model import ModelSpec

ROWS = 2048
REPETITIONS = 9


@dataclass(frozen=True, kw_only=True)
class MachineRow:
    """The machine's own speed, with nothing of ours in between but file access."""

    stage: str = ""
    """What it is compared with."""

    gemm_flop_per_s: float
    """Best of several products of the MLP's shape, in the dtype the processor is fastest in, the
    weight in the order in which it reads it fastest."""

    disk_bytes_per_s: float
    """All layers of the store in large requests, several in flight, past the page cache: median
    of three times."""

    streamed_bytes: int
    """Bytes of the matrices of all layers."""

    linear_parameters: int
    """Numbers in them."""


def main(request: str) -> None:
    """Measure, with the checkpoint and the directory of the store that a request names."""
    asked: Mapping[str, str] = json.loads(request)
    print(json.dumps(asdict(_measure(Path(asked["checkpoint"]), Path(asked["directory"])))))


def _measure(checkpoint: Path, directory: Path) -> MachineRow:
    from flexgen_helm.model.checkpoint import read_spec
    from flexgen_helm.model.dtypes import device_of, resolve_dtype
    from flexgen_helm.model.opening import open_store
    from flexgen_helm.offload.disk import DiskReader, aligned_buffer, aligned_up
    from flexgen_helm.offload.weights import layer_part
    from flexgen_helm.specs.compression import Compression

    spec = read_spec(checkpoint)
    dtype = resolve_dtype("auto", "cpu")
    store = open_store(
        checkpoint,
        spec,
        Compression(),
        dtype=dtype,
        device=device_of("cpu"),
        offload_dir=directory,
    )
    layers = [layer_part(index) for index in range(spec.num_layers)]
    files = [store.part(layer).path for layer in layers]
    buffers = [aligned_buffer(aligned_up(file.stat().st_size)) for file in files[:2]]
    reader = DiskReader()

    def read_all() -> None:
        """Read all files, the next one begun before one is waited for: the disk never pauses."""
        pending: list[Future[None]] = []
        for index, file in enumerate(files):
            begun = reader.read(file, 0, buffers[index % 2])
            wait(pending)
            pending = begun
        wait(pending)

    num_bytes = sum(file.stat().st_size for file in files)
    seconds = sorted(_seconds(read_all) for _ in range(3))
    reader.close()
    return MachineRow(
        gemm_flop_per_s=_gemm_rate(spec, dtype),
        disk_bytes_per_s=round(num_bytes / seconds[1]),
        streamed_bytes=store.linear_bytes,
        linear_parameters=spec.num_layers * sum(a * b for a, b in spec.linear_shapes.values()),
    )


def _gemm_rate(spec: ModelSpec, dtype: str) -> float:
    import torch

    from flexgen_helm.model.dtypes import DTYPES
    from flexgen_helm.model.linear import laid_out, linear

    with torch.inference_mode():
        rows = torch.randn(ROWS, spec.hidden_size, dtype=DTYPES[dtype])
        weight = laid_out(
            torch.randn(spec.ffn_size, spec.hidden_size, dtype=DTYPES[dtype]), DTYPES[dtype]
        )
        seconds = min(_seconds(lambda: linear(rows, weight)) for _ in range(REPETITIONS))
    return round(2 * ROWS * spec.hidden_size * spec.ffn_size / seconds)


def _seconds(function: Callable[[], object]) -> float:
    start_s = perf_counter()
    function()
    return perf_counter() - start_s


if __name__ == "__main__":
    main(sys.argv[1])
