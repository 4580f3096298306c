"""The simulated card finds what it is for: each fault that it checks for, made on purpose."""

import gc

import pytest
import torch

from flexgen_helm import Policy
from flexgen_helm.offload.link import CudaLink, Lane
from flexgen_helm.offload.waiting import Waiting
from flexgen_helm.runtime.cuda_graphs import CaptureError, CudaCapture
from flexgen_helm.runtime.device_cap import cap_device_memory
from tests.runtime.test_offloading import PLACEMENTS, run
from tests.simulated_card.card import Card
from tests.simulated_card.cuda import Event, Stream, installed
from tests.simulated_card.tensors import DeviceTensor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is here")

CUDA = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    card = Card()
    with installed(card, monkeypatch), torch.inference_mode():
        yield card


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (Stream, "wait_event"),
        (Stream, "wait_stream"),
        (Event, "synchronize"),
        (DeviceTensor, "record_stream"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_engines_that_forget_to_wait_are_found(checkpoint, where, name, monkeypatch, tmp_path):
    monkeypatch.setattr(where, name, lambda *_: None)
    card = Card()
    places = PLACEMENTS["all tiers"]
    policy = Policy(weights=places, cache=places, activations=places, micro_batch_tokens=16)
    with installed(card, monkeypatch):
        run(checkpoint, "none", policy, device="cuda", offload_dir=tmp_path)
    expected = "given back" if name == "record_stream" else "not waiting until"
    assert any(expected in found for found in card.findings)


def test_memory_that_is_lent_again_too_early_is_found(card, monkeypatch):
    monkeypatch.setattr(CudaLink, "hold", lambda *_: None)
    link = CudaLink(CUDA, Waiting())
    link.up(link.buffer(100), Lane.CACHE).use()
    link.buffer(100)
    assert any("memory is written by aten.zero_" in found for found in card.findings)


def test_what_has_been_waited_for_is_no_fault(card):
    stream = torch.cuda.Stream()
    source = torch.ones(4).pin_memory()
    with torch.cuda.stream(stream):
        copy = source.to(CUDA, non_blocking=True)
    event = torch.cuda.Event()
    event.record(stream)
    torch.cuda.current_stream().wait_event(event)
    copy.record_stream(torch.cuda.current_stream())
    assert (copy + 1).tolist() == [2] * 4
    source.zero_()
    assert not card.findings


def test_disjoint_parts_are_no_fault(card):
    memory = torch.zeros(2, 8, device=CUDA)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        memory[:, :4] = 1
    memory[:, 4:] = 2
    assert not card.findings
    memory[:, 3:5] = 3
    assert len(card.findings) == 1


def test_host_and_device_do_not_meet(card):
    there, here = torch.ones(3, device=CUDA), torch.ones(3)
    with pytest.raises(RuntimeError, match=r"same device.*\(3,\)\] on cuda:0, \[\(3,\)\] on cpu"):
        there + here
    assert (there + torch.tensor(1)).tolist() == [2] * 3, "but for single numbers"


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.cpu(),
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([0])],
        lambda x: x.__setitem__(0, 2),
        lambda _: torch.ones(3).to(CUDA),
        lambda _: torch.cuda.synchronize(),
    ],
    ids=["cpu", "item", "bool", "mask", "index of the host", "number", "to", "synchronize"],
)
def test_waits_are_found_where_they_are_forbidden(card, wait):
    numbers = torch.ones(3, device=CUDA)
    torch.cuda.set_sync_debug_mode("error")
    numbers[:1] = 2  # of a single one, PyTorch copies the number there, and waits
    numbers.sum()
    torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        wait(numbers)


def test_more_than_the_cap_is_refused(card):
    cap_device_memory(CUDA, 3000)
    first = torch.empty(1000, dtype=torch.uint8, device=CUDA)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2001, dtype=torch.uint8, device=CUDA)
    del first
    torch.empty(2001, dtype=torch.uint8, device=CUDA)
    assert card.allocated_bytes == 0
    assert card.peak_bytes == 2048


class TestGraphs:
    def test_replays_compute_what_is_there_by_then(self, card):
        numbers = torch.ones(3, device=CUDA)
        replay = CudaCapture(CUDA)(lambda: [numbers.mul_(2) + 1])
        assert numbers.tolist() == [1] * 3, "nothing is computed when it is captured"
        assert replay()[0].tolist() == [3] * 3
        numbers.fill_(5)
        [result] = replay()
        assert (numbers.tolist(), result.tolist()) == ([10] * 3, [11] * 3)
        assert not card.findings

    @pytest.mark.parametrize(
        "forbidden",
        [
            lambda x: x.sum().item(),
            lambda _: torch.tensor([1], device=CUDA),
            lambda _: torch.ones(3).to(CUDA, non_blocking=True),
        ],
        ids=["item", "a new number", "not pinned"],
    )
    def test_what_cannot_be_captured(self, card, forbidden):
        numbers, current = torch.ones(3, device=CUDA), card.stream
        with pytest.raises(CaptureError):
            CudaCapture(CUDA)(lambda: [forbidden(numbers)])
        assert card.stream is current

    def test_inputs_that_are_gone_are_found(self, card):
        numbers = torch.ones(3, device=CUDA)
        replay = CudaCapture(CUDA)(lambda numbers=numbers: [numbers + 1])
        replay()
        assert not card.findings
        del numbers
        gc.collect()
        replay()
        assert any("given back" in found for found in card.findings)

    def test_its_memory_is_its_own_until_it_is_gone(self, card):
        numbers = torch.ones(1000, dtype=torch.uint8, device=CUDA)
        replay = CudaCapture(CUDA)(lambda: [(numbers + 1) * 2])
        assert card.allocated_bytes == 3 * 1024
        del replay
        assert card.allocated_bytes == 1024
