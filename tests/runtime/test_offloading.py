"""Engines with weights elsewhere than in memory against one that has them all there."""

import pytest

from flexgen_helm import Compression, Engine, GenerationRequest, Policy, SamplingParams
from flexgen_helm.specs.placement import Placement

PLACEMENTS = {
    "disk": Placement(disk=1),
    "host": Placement(host=1),
    "device and disk": Placement(device=0.5, disk=0.5),
    "all tiers": Placement(device=0.3, host=0.3, disk=0.4),
}


def requests():
    """Prompts with a beginning in common; some are scored, most go on for some tokens."""
    shared = [2, *(5 + i % 90 for i in range(40))]
    return [
        GenerationRequest(
            prompt_token_ids=[*shared, *(7 + (3 * i + j) % 80 for j in range(i))],
            sampling=SamplingParams(max_tokens=[0, 1, 6, 20][i % 4], num_completions=1 + i % 2),
            prompt_logprobs=i % 4 == 0,
        )
        for i in range(12)
    ]


@pytest.fixture(scope="module", params=["none", "w4-kv4"])
def label(request):
    return request.param


@pytest.fixture(scope="module")
def expected(label, checkpoint):
    return run(checkpoint, label, Policy())


def run(checkpoint, label, policy, **options):
    with Engine.from_pretrained(
        checkpoint,
        compression=Compression.parse(label),
        dtype="float32",
        policy=policy,
        **options,
    ) as engine:
        return engine.generate(requests())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("micro_batch_tokens", [16, 2048])
def test_results_do_not_depend_on_where_weights_are(
    checkpoint, label, expected, placement, overlap, micro_batch_tokens, tmp_path_factory
):
    policy = Policy(
        weights=PLACEMENTS[placement], overlap=overlap, micro_batch_tokens=micro_batch_tokens
    )
    offload_dir = tmp_path_factory.getbasetemp() / "stores"
    for result, other in zip(
        run(checkpoint, label, policy, offload_dir=offload_dir), expected, strict=True
    ):
        assert result.prompt_logprobs == (
            other.prompt_logprobs and pytest.approx(other.prompt_logprobs, abs=1e-4)
        )
        for completion, reference in zip(result.completions, other.completions, strict=True):
            assert completion.token_ids == reference.token_ids
            assert completion.logprobs == pytest.approx(reference.logprobs, abs=1e-4)


def test_the_store_is_made_once(checkpoint, tmp_path):
    policy = Policy(weights=Placement(disk=1))
    run(checkpoint, "w4", policy, offload_dir=tmp_path)
    [store] = tmp_path.iterdir()
    times = {file: file.stat().st_mtime_ns for file in store.iterdir()}
    run(checkpoint, "w4", policy, offload_dir=tmp_path)
    assert {file: file.stat().st_mtime_ns for file in store.iterdir()} == times
    run(checkpoint, "w4-kv4", policy, offload_dir=tmp_path)
    assert [*tmp_path.iterdir()] == [store], "how the cache is stored does not change the weights"
