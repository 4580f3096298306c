"""What only CUDA devices show: a simulated one and, where there is one, a real one.

Without a real one its tests are skipped, and listed by name at the end.
"""

from itertools import product

import pytest
import torch

from flexgen_helm import Engine, GenerationRequest, MemoryBudget, Policy, SamplingParams
from flexgen_helm.model.attention import MOST_HEADS, attend
from flexgen_helm.offload.link import OWN_PINNED_BYTES, CudaLink, Lane
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.runtime.device_cap import cap_device_memory
from tests.conftest import GPU, NEEDS_GPU, SIMULATED, byte_tokenizer, save_random_checkpoint
from tests.runtime.test_offloading import PLACEMENTS, POLICIES, assert_equal, run

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU)
CUDA = torch.device("cuda", 0)


CASES = [
    *product([SIMULATED], ["none"], POLICIES),
    *product([SIMULATED], ["w4-kv4"], POLICIES[::3]),
    *product([GPU], ["none", "w4-kv4"], POLICIES),
]


def test_tokens_are_those_of_the_cpu(checkpoint, cuda):
    results = run(checkpoint, "none", Policy(), device="cuda")
    assert_equal(results, run(checkpoint, "none", Policy(), device="cpu"))
    for result in results:  # the device and the host have peaks of their own
        assert result.statistics.peak_memory_bytes < result.statistics.peak_host_bytes


@pytest.mark.parametrize(
    ("cuda", "label", "policy"),
    [pytest.param(*device.values, *case, marks=device.marks) for device, *case in CASES],
    ids=[f"{device.id}-{label}-{POLICIES.index(policy)}" for device, label, policy in CASES],
    indirect=["cuda"],
)
def test_every_policy_gives_the_same_tokens(checkpoint, cuda, label, policy, tmp_path_factory):
    offload_dir = tmp_path_factory.getbasetemp() / "stores"
    results = run(checkpoint, label, policy, device="cuda", offload_dir=offload_dir)
    assert_equal(results, run(checkpoint, label, Policy(), device="cuda"))


@on_gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_transformers_chooses_the_same_tokens(checkpoint, dtype):
    """In a 16-bit dtype until the first tie: a handful of tokens of each, most to the end."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).to(CUDA)
    prompts = [[2, *range(5, 5 + length)] for length in (3, 17, 60)]
    sampling = SamplingParams(max_tokens=12)
    with Engine.from_pretrained(checkpoint, dtype=dtype, device="cuda") as engine:
        results = engine.generate(
            [GenerationRequest(prompt_token_ids=p, sampling=sampling) for p in prompts]
        )
    agreed = 0
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([prompt], device=CUDA)
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        expected, actual = made[0, len(prompt) :].tolist(), result.completions[0].token_ids
        same = [x == y for x, y in zip(expected, actual, strict=False)]
        assert same[0]
        agreed += all(same)
    assert agreed >= 2


def test_more_than_the_cap_is_refused(cuda):
    try:
        cap_device_memory(CUDA, 256 << 20)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(512 << 20, dtype=torch.uint8, device=CUDA)
    finally:
        cap_device_memory(CUDA, None)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A checkpoint whose memory is not all what any takes, but mostly its own."""
    directory = tmp_path_factory.mktemp("roomy")
    changes = {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 4}
    save_random_checkpoint(
        directory,
        byte_tokenizer(),
        ffn_dim=2048,
        init_std=0.02,
        max_position_embeddings=512,
        **changes,
    )
    return directory


@pytest.mark.parametrize(
    ("label", "megabytes"),
    [("none", 130), ("none", 180), ("w4-kv4", 110), ("w4-kv4", 300)],
)
def test_a_budget_is_never_exceeded(roomy, cuda, label, megabytes, tmp_path):
    """And memory is never short, which would make micro-batches smaller, with a warning."""
    torch.cuda.reset_peak_memory_stats(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    batch = [
        GenerationRequest(
            prompt_token_ids=[2, *(5 + (i * 7 + j * 3) % 200 for j in range(150 + i % 20))],
            sampling=SamplingParams(max_tokens=6),
        )
        for i in range(24)
    ]
    with Engine.from_pretrained(
        roomy,
        compression=label,
        device="cuda",
        dtype="float32",
        budget=MemoryBudget(device=megabytes * 10**6, host="2GB"),
        offload_dir=tmp_path,
    ) as engine:
        results = engine.generate(batch)
    assert torch.cuda.max_memory_allocated(CUDA) - before <= megabytes * 10**6
    assert sum(len(r.completions[0].token_ids) for r in results) > 24


def test_what_was_copied_to_the_host_is_not_kept_on_the_device(cuda):
    link = CudaLink(CUDA, Waiting())
    before = torch.cuda.memory_allocated(CUDA)
    tensor = torch.full((1 << 20,), 3, dtype=torch.uint8, device=CUDA)
    copy = link.down(tensor)
    del tensor
    assert torch.cuda.memory_allocated(CUDA) == before
    assert torch.equal(copy.wait(), torch.full((1 << 20,), 3, dtype=torch.uint8))
    link.close()


def test_more_heads_than_cuda_lets_a_kernel_have(cuda):
    shape = MOST_HEADS + 2, 2, 8
    q, k, v = (torch.randn(shape) for _ in range(3))
    expected = attend(q, k, v, causal=True)
    found = attend(*(x.to(CUDA) for x in (q, k, v)), causal=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("placement", ["host", "disk", "all tiers"])
def test_no_step_waits_for_the_device(checkpoint, cuda, placement, tmp_path, monkeypatch):
    """Between fetching the embeddings and the end of a pass, nothing asks CUDA to wait."""
    from flexgen_helm.runtime import executor

    class Watched(executor.ModelPass):
        def run(self, blocks=()):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return super().run(blocks)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(executor, "ModelPass", Watched)
    places = PLACEMENTS[placement]
    policy = Policy(weights=places, cache=places, activations=places)
    run(checkpoint, "none", policy, device="cuda", offload_dir=tmp_path)
    shared = [2, *(5 + i % 90 for i in range(150))]  # so long that it is stored once
    with Engine.from_pretrained(
        checkpoint, dtype="float32", device="cuda", policy=policy, offload_dir=tmp_path
    ) as engine:
        engine.generate(
            [
                GenerationRequest(
                    prompt_token_ids=[*shared, 7 + i], sampling=SamplingParams(max_tokens=8)
                )
                for i in range(12)
            ]
        )


def test_copies_of_a_link(cuda):
    waiting = Waiting()
    link = CudaLink(CUDA, waiting)
    source = link.buffer(1 << 20)
    source.random_()
    up = link.up(source, Lane.CACHE)
    back = link.down(up.use() + 1).wait()
    assert torch.equal(back, source + 1)
    target = torch.zeros(1 << 20, dtype=torch.uint8, device=CUDA)
    assert torch.equal(link.fill(target, source, link.mark()).use().cpu(), source)
    torch.cuda.synchronize()
    link.settle()
    assert waiting.so_far.link_s >= 0
    assert (sum(link.copied.values()), link.to_device_bytes) == (3 << 20, 2 << 20)
    link.close()


def test_memory_is_not_lent_again_while_it_is_copied(cuda):
    """Large copies down and up again, one after another, nobody waiting for any."""
    link = CudaLink(CUDA, Waiting())
    numbers = [torch.full((OWN_PINNED_BYTES,), n, dtype=torch.uint8, device=CUDA) for n in range(9)]
    ups = [link.down(tensor).back(Lane.CACHE).use() for tensor in numbers]
    for tensor, up in zip(numbers, ups, strict=True):
        assert torch.equal(tensor, up)
    link.close()


def test_a_cap_is_a_part_of_the_card(monkeypatch):
    said = []
    card = type("Card", (), {"total_memory": 80 * 10**9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *a: said.append(a))
    cap_device_memory(CUDA, 16 * 10**9)
    cap_device_memory(CUDA, 100 * 10**9)
    cap_device_memory(CUDA, None)
    assert said == [(0.2, CUDA), (1.0, CUDA), (1.0, CUDA)]
