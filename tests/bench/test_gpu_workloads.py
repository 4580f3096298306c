import pytest

from flexgen_helm.bench import gpu_process, upstream
from flexgen_helm.bench.gpu_workloads import (
    helm_requests,
    padded_requests,
    pinned_weight_bytes,
    published_policies,
)
from flexgen_helm.bench.trial import UniformWorkload
from flexgen_helm.specs.catalog import EMBEDDED_CHECKPOINT
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.opt_sizes import known_spec


def test_policies_are_upstreams_options():
    [plain, compressed] = published_policies("30b", UniformWorkload(500, 32), host_bytes=10**12)
    assert plain.batch == 144
    assert " ".join(plain.options) == (
        "--gpu-batch-size 48 --num-gpu-batches 3 --percent 20 80 0 100 0 100 --cpu-cache-compute"
    )
    assert compressed.options[-1] == "--compress-cache"
    asked = {
        "model": "30b",
        "requests": [{"most_own": 512, "new_tokens": 32}],
        "options": plain.options,
    }
    options = upstream.options(asked, EMBEDDED_CHECKPOINT)
    assert options[:4] == ["--model", "facebook/opt-30b", "--path", "_DUMMY_"]
    assert options[options.index("--prompt-len") + 1] == "512"


def test_upstream_gets_as_many_batches_as_the_host_has_memory_for():
    """Of 48 sequences with 544 tokens of 1.38 MB each, beside 61.8 GB of weights; of 64 with two
    sevenths of that, beside 77.3 GB; and 19.3 GB for the rest."""
    names = [
        p.name for p in published_policies("30b", UniformWorkload(512, 32), host_bytes=137 * 10**9)
    ]
    assert names == ["48x1 of 48x3 none", "64x2 of 64x8 kv4"]
    assert not [*published_policies("30b", UniformWorkload(512, 32), host_bytes=90 * 10**9)]


def test_a_size_without_published_policies_has_none():
    assert not [*published_policies("13b", UniformWorkload(512, 32), host_bytes=10**12)]


def test_upstreams_weights_take_pinned_memory_by_powers_of_two():
    """Of 48 layers, four matrices of 98 MiB take 128 each, and two of 392 take 512."""
    spec = known_spec("facebook/opt-30b")
    taken = pinned_weight_bytes(spec, Compression())
    assert taken == 48 * (4 * 128 + 2 * 512) * 2**20


def test_sub_scenarios_have_the_lengths_and_beginnings_of_real_ones():
    ours, padded = [*helm_requests(0.1)], [*padded_requests(0.1)]
    assert [requests.count for requests in ours] == [29, 259, 86, 101, 158, 158, 157]
    assert [requests.count for requests in ours] == [requests.count for requests in padded]
    xsum = ours[-1]
    assert (xsum.prompt_len, xsum.shared + xsum.most_own, xsum.new_tokens) == (1390, 1613, 64)
    made = [*gpu_process.prompts(xsum)]
    assert {len(prompt) for prompt in made} <= {*range(xsum.prompt_len - 230, 1614)}
    assert sum(map(len, made)) / len(made) == pytest.approx(1390, abs=2)
    assert len({tuple(prompt[: xsum.shared]) for prompt in made}) == 3
    assert [requests.prompt_len for requests in padded] == [256, 256, 512, 512, 256, 256, 1984]
    assert all(not requests.shared for requests in padded)
