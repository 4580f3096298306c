"""A pass reads what micro-batches share once in a layer."""

from collections import Counter

import pytest
import torch

from flexgen_helm.model.kv_cache import KeysByHead, SegmentCache
from flexgen_helm.runtime.engine import Engine
from flexgen_helm.runtime.shared_reads import SharedReads
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.policy import Policy
from flexgen_helm.specs.request import GenerationRequest, SamplingParams


class Cache:
    """Counts what is begun and read of each layer."""

    def __init__(self, num_tokens):
        self.num_tokens = num_tokens
        self.begun, self.read_ = Counter(), Counter()

    def begin_read(self, layer):
        self.begun[layer] += 1
        return 10

    def read(self, layer):
        self.read_[layer] += 1
        return KeysByHead(torch.full((1, 1, 1), layer), torch.zeros(1, 1, 1))


def reads_of(*caches, readers, most_tokens=100):
    reads = SharedReads(most_tokens)
    for cache in caches:
        for _ in range(readers):
            reads.add_reader(cache)
    return reads


def test_a_layer_is_read_once_for_all_readers():
    cache = Cache(100)
    reads = reads_of(cache, readers=3)
    for layer in range(2):
        for _ in range(3):
            assert reads.read(cache, layer).keys.item() == layer
    assert cache.read_ == {0: 1, 1: 1}


def test_what_is_ahead_is_begun_once_for_all_readers():
    cache = Cache(100)
    reads = reads_of(cache, readers=2)
    assert [reads.begin(cache, layer) for layer in (0, 0, 1)] == [10, 0, 10]
    reads.read(cache, 0)
    assert reads.begin(cache, 1) == 0
    reads.read(cache, 0)
    reads.read(cache, 1)
    reads.read(cache, 1)
    assert cache.begun == cache.read_ == {0: 1, 1: 1}


def test_a_layer_can_be_read_in_the_next_pass_again():
    cache = Cache(100)
    for _ in range(2):
        reads = reads_of(cache, readers=2)
        reads.begin(cache, 0)
        reads.read(cache, 0)
        reads.read(cache, 0)
    assert cache.begun == {0: 2}


def test_no_more_is_kept_than_may_be():
    """The one with the most readers is kept, the other read by each of its own."""
    small, large = Cache(40), Cache(61)
    reads = reads_of(small, large, readers=2)
    reads.add_reader(large)
    for cache, readers in ((small, 2), (large, 3)):
        for _ in range(readers):
            reads.begin(cache, 0)
            reads.read(cache, 0)
    assert (small.read_[0], large.read_[0]) == (2, 1)
    assert (small.begun[0], large.begun[0]) == (2, 1)


@pytest.mark.parametrize("cache", [{}, {"disk": 1.0}])
@pytest.mark.parametrize("label", ["none", "w4-kv4"])
def test_a_prefix_is_read_once_by_several_micro_batches(
    checkpoint, tmp_path, monkeypatch, cache, label
):
    read = Counter()
    original = SegmentCache.read

    def counted(self, layer):
        read[layer] += 1
        return original(self, layer)

    monkeypatch.setattr(SegmentCache, "read", counted)
    sampling = SamplingParams(max_tokens=4)
    requests = [
        GenerationRequest(
            prompt_token_ids=[2, *(5 + j % 90 for j in range(100)), 7 + i], sampling=sampling
        )
        for i in range(12)
    ]

    def generate(size):
        read.clear()
        policy = Policy.from_settings({"micro_batch_size": size, "cache": cache or {"device": 1}})
        with Engine.from_pretrained(
            checkpoint,
            compression=Compression.parse(label),
            dtype="float32",
            device="cpu",
            policy=policy,
            offload_dir=tmp_path,
        ) as engine:
            results = engine.generate(requests)
        return [result.completions[0].token_ids for result in results], dict(read)

    tokens, once = generate(12)
    assert set(once.values()) == {3}, "as many as there are passes of decode"
    assert generate(4) == (tokens, once)
