from flexgen_helm.bench.gpu_benchmark import (
    HELM,
    PADDED,
    PEERS,
    SHARED,
    STAGES,
    THROUGHPUT,
    GpuBenchmark,
    trials,
)
from flexgen_helm.bench.gpu_trial import ACCELERATE, OURS, UPSTREAM
from flexgen_helm.bench.trial import UniformWorkload


def benchmark(**changes):
    return GpuBenchmark(
        **{
            "stages": STAGES,
            "models": ["30b", "6.7b"],
            "peers": PEERS,
            "compressions": ["w4-kv4", "w4"],
            "workload": UniformWorkload(512, 32),
            "batch": 256,
            "helm_model": "30b",
            "helm_share": 0.02,
            "cap_bytes": 16 * 10**9,
            **changes,
        }
    )


def test_each_model_is_measured_with_ours_and_all_published_policies():
    """What the benchmark is about first, as the time may run out."""
    asked = [
        (t.stage, t.model, t.system, t.setting) for t in trials(benchmark(), host_bytes=10**12)
    ]
    assert asked == [
        (THROUGHPUT, "30b", OURS, "w4-kv4"),
        (THROUGHPUT, "30b", UPSTREAM, "48x3 none"),
        (THROUGHPUT, "30b", UPSTREAM, "64x8 kv4"),
        (HELM, "30b", OURS, SHARED),
        (HELM, "30b", OURS, PADDED),
        (THROUGHPUT, "6.7b", OURS, "w4-kv4"),
        (THROUGHPUT, "6.7b", UPSTREAM, "2x1 none"),
        (THROUGHPUT, "6.7b", UPSTREAM, "72x1 w4-kv4"),
        (THROUGHPUT, "30b", OURS, "w4"),
        (THROUGHPUT, "30b", ACCELERATE, "weights on the host"),
        (THROUGHPUT, "6.7b", OURS, "w4"),
        (THROUGHPUT, "6.7b", ACCELERATE, "weights on the host"),
    ]
