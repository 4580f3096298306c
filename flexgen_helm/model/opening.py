"""Weights ready to compute with, wherever a policy wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from flexgen_helm.model.checkpoint import fingerprint, open_checkpoint
from flexgen_helm.model.convert import convert
from flexgen_helm.model.dtypes import DTYPES
from flexgen_helm.model.linear import laid_out
from flexgen_helm.model.loading import load_weights
from flexgen_helm.offload.link import Link
from flexgen_helm.offload.store import StoreIdentity, WeightStore
from flexgen_helm.offload.streamed import StreamedWeights
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.offload.weights import WeightSource, layer_part
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.placement import ON_DEVICE, place_evenly
from flexgen_helm.specs.policy import Policy

DEFAULT_OFFLOAD_DIR = Path("~/.cache/flexgen_helm")


def open_weights(
    path: Path,
    spec: ModelSpec,
    compression: Compression,
    policy: Policy,
    *,
    dtype: str,
    device: torch.device,
    offload_dir: Path,
    on_part: Callable[[], object] = lambda: None,
    link: Link | None = None,
    waiting: Waiting | None = None,
) -> WeightSource:
    """Load a checkpoint, or open its store where a policy has weights elsewhere than on the device.

    Args:
        path: directory of the checkpoint.
        spec: its architecture.
        compression: what the linear layers are stored as.
        policy: where weights are.
        dtype: name of the compute dtype.
        device: what computes.
        offload_dir: where stores are.
        on_part: called after each part that is loaded or converted, for progress.
        link: to the device; `None` where it has the host's memory.
        waiting: told of waits for the disk.

    Raises:
        CheckpointError: a tensor is missing, damaged or of another shape than the spec says.
        StoreError: the store is damaged, or its disk cannot be used.
    """
    if policy.weights == ON_DEVICE:
        return load_weights(
            open_checkpoint(path),
            spec,
            compression,
            dtype=DTYPES[dtype],
            device=device,
            on_part=on_part,
        )
    store = open_store(
        path,
        spec,
        compression,
        dtype=dtype,
        device=device,
        offload_dir=offload_dir,
        on_part=on_part,
    )
    layers = [layer_part(index) for index in range(spec.num_layers)]
    tiers = place_evenly([store.linear_sizes(layer) for layer in layers], policy.weights)
    return StreamedWeights(
        store,
        dict(zip(layers, tiers, strict=True)),
        dtype=DTYPES[dtype],
        device=device,
        lay_out=laid_out,
        overlap=policy.overlap,
        link=link,
        waiting=waiting,
    )


def open_store(
    path: Path,
    spec: ModelSpec,
    compression: Compression,
    *,
    dtype: str,
    device: torch.device,
    offload_dir: Path,
    on_part: Callable[[], object] = lambda: None,
) -> WeightStore:
    """Open the weight store of a checkpoint, made or finished first if need be.

    See `open_weights` for arguments and errors.
    """
    identity = StoreIdentity.of(fingerprint(path), compression, dtype)
    return convert(
        open_checkpoint(path),
        spec,
        identity,
        dtype=DTYPES[dtype],
        directory=offload_dir / identity.directory_name,
        device=device,
        on_part=on_part,
    )
