"""Plans and predictions as a user of the engine meets them."""

from dataclasses import replace

import pytest

from flexgen_helm import Engine, GenerationRequest, MemoryBudget, Policy, SamplingParams
from flexgen_helm.errors import BudgetError, HardwareError
from flexgen_helm.model.checkpoint import read_spec
from flexgen_helm.planner.memory import plan_memory
from flexgen_helm.planner.setup import Setup
from flexgen_helm.runtime import arrangement
from flexgen_helm.runtime.lengths import workload_of
from flexgen_helm.specs.calibration import PROFILE_VARIABLE
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.placement import Tier
from tests.planner.machines import CPU

MACHINE = replace(CPU, dtype="float32")


def requests(count=6):
    sampling = SamplingParams(max_tokens=6)
    return [
        GenerationRequest(prompt_token_ids=[2, 5 + i // 90, 6 + i % 90], sampling=sampling)
        for i in range(count)
    ]


MANY = 500


def less_than_needed(checkpoint, workload=None):
    """Memory that is too small for what the default policy takes for a workload."""
    setup = Setup(
        spec=read_spec(checkpoint), compression=Compression(), dtype_bytes=4, unified=True
    )
    terms = plan_memory(setup, Policy(), MemoryBudget(), workload).fixed.values()
    needed = sum(term.get(tier, 0) for term in terms for tier in Tier)
    return MemoryBudget(device=int(needed * 0.97))


@pytest.fixture
def tight(checkpoint):
    """Memory that is too small for the default policy and `MANY` requests of three tokens."""
    return less_than_needed(checkpoint, workload_of(requests(MANY), 256))


def test_few_requests_fit_where_many_would_not(checkpoint, tmp_path):
    budget = less_than_needed(checkpoint)
    with Engine.from_pretrained(
        checkpoint, budget=budget, hardware=MACHINE, dtype="float32", offload_dir=tmp_path
    ) as engine:
        assert engine.prediction is not None
        engine.generate(requests())
        assert engine.prediction is None
        assert engine.policy == Policy()


def test_what_does_not_fit_is_planned_for_its_requests(checkpoint, tight, tmp_path, capsys):
    arguments = {"dtype": "float32", "device": "cpu", "offload_dir": tmp_path}
    with Engine.from_pretrained(checkpoint, **arguments) as engine:
        expected = engine.generate(requests(MANY))
        assert engine.prediction is None
    capsys.readouterr()
    with Engine.from_pretrained(checkpoint, budget=tight, hardware=MACHINE, **arguments) as engine:
        assert engine.prediction is not None
        results = engine.generate(requests(MANY))
        assert engine.policy == engine.prediction.policy != Policy()
        assert engine.prediction.per_scenario[0].num_requests == MANY
        engine.generate(requests(2))
    assert [r.completions for r in results] == [r.completions for r in expected]
    shown = capsys.readouterr().err
    assert shown.count("predicted for ") == 1
    assert "micro-batches: " in shown


def test_what_the_policy_has_no_room_for_is_planned_for(checkpoint, monkeypatch):
    planned = []

    def note(setup, hardware, budget, workload):
        planned.append(workload.most_cached)
        return Policy(), None

    monkeypatch.setattr(arrangement, "automatic_policy", note)
    sampling = SamplingParams(max_tokens=600)
    long = GenerationRequest(prompt_token_ids=[2, *range(5, 155)], sampling=sampling)
    arguments = {"dtype": "float32", "device": "cpu"}
    with Engine.from_pretrained(checkpoint, policy=Policy(), **arguments) as engine:
        engine.generate([long])
        needed = engine.plan.bytes_on(tuple(Tier), cached_tokens=100)
    arguments |= {"budget": MemoryBudget(device=int(needed)), "hardware": MACHINE}
    with Engine.from_pretrained(checkpoint, requests=requests(), **arguments) as engine:
        for _ in range(2):
            engine.generate(requests())
        assert planned == [3 + 5]
        with pytest.raises(BudgetError, match="needs 256 tokens in the KV cache"):
            engine.generate([long])
    assert planned == [3 + 5, 256]


def test_results_say_what_was_predicted(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "hardware.json"))
    arguments = {"dtype": "float32", "device": "cpu", "policy": Policy()}
    with Engine.from_pretrained(checkpoint, **arguments) as engine:
        [result] = engine.generate(requests(1))
        assert result.statistics.predicted_prefill_s is None
        assert result.statistics.planned_memory_bytes is None
    (tmp_path / "hardware.json").write_text(MACHINE.to_json())
    budget = MemoryBudget(device="4GB")
    with Engine.from_pretrained(checkpoint, budget=budget, **arguments) as engine:
        costs = [result.statistics for result in engine.generate(requests())]
    assert all(cost.predicted_prefill_s > 0 and cost.predicted_decode_s > 0 for cost in costs)
    assert len({cost.predicted_decode_s for cost in costs}) == 1
    assert all(cost.planned_memory_bytes > cost.peak_memory_bytes / 10 for cost in costs)


def test_without_any_profile_the_nearest_policy_is_taken(checkpoint, tight, tmp_path, monkeypatch):
    def missing(**_):
        raise HardwareError("no profiles were installed")

    monkeypatch.setattr(arrangement, "typical_hardware", missing)
    arguments = {"dtype": "float32", "device": "cpu", "offload_dir": tmp_path}
    with Engine.from_pretrained(checkpoint, budget=tight, **arguments) as engine:
        assert engine.prediction is None
        assert engine.policy != Policy()
        assert len(engine.generate(requests())) == 6


def test_nothing_is_generated_for_nothing(checkpoint):
    with Engine.from_pretrained(checkpoint, dtype="float32", device="cpu") as engine:
        assert engine.generate([]) == []
