"""Machines and models that anyone can do the sums of."""

from dataclasses import replace

from flexgen_helm.planner.setup import Setup
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Curve, Hardware, Surface
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.workload import RequestLengths, Workload

SMALL = ModelSpec(
    num_layers=10,
    hidden_size=1000,
    num_heads=10,
    ffn_size=4000,
    vocab_size=2000,
    max_positions=2000,
    embedding_size=1000,
)
"""12 million numbers in the matrices of a layer; a cached token takes 40 kB in 16 bits."""

GPU = Hardware(
    name="round",
    source="made up",
    unified=False,
    dtype="float16",
    device_bytes=10**9,
    host_bytes=10**10,
    disk_bytes=10**11,
    product_flop_per_s=Surface(((1.0, Curve(((1.0, 1e10), (100.0, 1e12)))),)),
    hidden_bytes_per_s=1e9,
    attention_flop_per_s=1e11,
    device_attention_bytes_per_s=1e11,
    host_attention_bytes_per_s=1e10,
    dequantized_weights_per_s=Curve(((1.0, 1e10),)),
    dequantized_cache_per_s=1e10,
    quantized_cache_per_s=1e9,
    host_to_device_bytes_per_s=1e10,
    device_to_host_bytes_per_s=5e9,
    disk_read_bytes_per_s=1e9,
    disk_write_bytes_per_s=5e8,
    step_s=1e-4,
    disk_step_s=1e-3,
    token_s=1e-5,
    contention=0.0,
)

CPU = replace(
    GPU,
    unified=True,
    dtype="bfloat16",
    host_bytes=10**9,
    host_to_device_bytes_per_s=None,
    device_to_host_bytes_per_s=None,
)


def flat(rate):
    """One rate, however large a matrix is and however many rows it is multiplied with."""
    return Surface(((1.0, Curve(((1.0, rate),))),))


def setup_of(hardware, label="none", spec=SMALL):
    return Setup(
        spec=spec,
        compression=Compression.parse(label),
        dtype_bytes=2,
        unified=hardware.unified,
    )


def lengths(**changes):
    return RequestLengths(
        **{
            "name": "some",
            "num_requests": 100,
            "prompt_len": 200,
            "max_prompt_len": 200,
            "new_tokens": 11,
            **changes,
        }
    )


def workload(*scenarios):
    return Workload(name="all", scenarios=scenarios or (lengths(),))
