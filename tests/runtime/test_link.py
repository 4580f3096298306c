"""Engines whose device has memory of its own, or so they are told, against one without a link."""

from itertools import product

import pytest

from flexgen_helm import Compression, Engine, GenerationRequest, Policy, SamplingParams
from flexgen_helm.offload.link import Lane
from flexgen_helm.runtime import loader
from flexgen_helm.specs import policy as policy_module
from flexgen_helm.specs.placement import Placement
from tests.offload.fake_link import FakeLink
from tests.runtime.test_offloading import PLACEMENTS, POLICIES, assert_equal, run


@pytest.fixture(params=[True, False], ids=["eager", "lazy"])
def links(request, monkeypatch):
    """All links made by engines."""
    made = []

    def link_to(device, waiting, *, overlap):
        made.append(FakeLink(eager=request.param, waiting=waiting, overlap=overlap))
        return made[-1]

    monkeypatch.setattr(loader, "link_to", link_to)
    return made


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
def test_results_do_not_depend_on_when_copies_are_there(
    checkpoint, label, expected, policy, links, tmp_path_factory
):
    offload_dir = tmp_path_factory.getbasetemp() / "stores"
    assert_equal(run(checkpoint, label, policy, offload_dir=offload_dir), expected)
    [link] = links
    assert (link.copied[Lane.WEIGHTS] > 0) == (policy.weights.device < 1)
    attends = policy.attention == "host"
    assert (link.copied[Lane.ATTENTION] > 0) == attends
    elsewhere = policy.cache.device < 1 or policy.activations.device < 1
    assert (link.copied[Lane.STORE] > 0) == elsewhere


@pytest.mark.parametrize("sparse_label", ["top20", "w4-kv4-top20"])
def test_sparse_attention_is_the_same(checkpoint, sparse_label, links, tmp_path):
    expected = run(checkpoint, sparse_label, Policy())
    for cache, attention in product(["disk", "host", "all tiers"], ["device", "host"]):
        policy = Policy(cache=PLACEMENTS[cache], attention=attention, micro_batch_size=3)
        assert_equal(run(checkpoint, sparse_label, policy, offload_dir=tmp_path), expected)


def test_sparse_attention_brings_keys_alone(checkpoint, links, tmp_path):
    """But for the values it attends to, which are picked out where they are."""
    asked = [
        GenerationRequest(prompt_token_ids=[5 + i] * 20, sampling=SamplingParams(max_tokens=8))
        for i in range(4)
    ]
    for label in ("none", "top20"):
        with Engine.from_pretrained(
            checkpoint,
            compression=Compression.parse(label),
            dtype="float32",
            policy=Policy(cache=Placement(host=1)),
            offload_dir=tmp_path,
        ) as engine:
            results = engine.generate(asked)
        assert [len(result.completions[0].token_ids) for result in results] == [8] * 4
    dense, sparse = (link.copied[Lane.CACHE] for link in links)
    assert sparse == dense / 2 > 0


def test_a_layer_passes_the_link_once_a_pass(checkpoint, links, tmp_path):
    """However many micro-batches it serves."""
    policy = Policy(weights=Placement(host=1), micro_batch_tokens=16, micro_batch_size=3)
    results = run(checkpoint, "none", policy, offload_dir=tmp_path)
    [link] = links
    layer_bytes = 4 * (4 * 64 * 64 + 2 * 64 * 128)
    passes = link.copied[Lane.WEIGHTS] / (3 * layer_bytes)
    longest = max(len(c.token_ids) for result in results for c in result.completions)
    assert passes >= longest
    assert passes <= longest + 2, "one ahead, and blocks of prompts that do not fit a pass"
    in_decode = sum(result.statistics.decode_to_device_bytes for result in results)
    assert 0.5 * link.to_device_bytes < in_decode < link.to_device_bytes


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_products_have_all_rows_however_little_is_read_at_once(
    checkpoint, tier, links, tmp_path, monkeypatch
):
    """Pools of one sequence each, read one after another."""
    expected = run(checkpoint, "w4-kv4-g32", Policy())
    monkeypatch.setattr(policy_module, "spilled_at_once", lambda *_, **__: 1)
    policy = Policy(cache=PLACEMENTS[tier])
    results = run(checkpoint, "w4-kv4-g32", policy, offload_dir=tmp_path)
    assert_equal(results, expected)
    products, as_many = (
        sum(result.statistics.decode_products for result in each) for each in (results, expected)
    )
    assert products == pytest.approx(as_many)
