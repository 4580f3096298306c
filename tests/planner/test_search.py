from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexgen_helm.errors import InfeasibleError, SolverError, UnboundedError
from flexgen_helm.planner import search as search_module
from flexgen_helm.planner.block_load import Shape
from flexgen_helm.planner.costs import phases
from flexgen_helm.planner.linear import VARIABLES, Linear, placement_of
from flexgen_helm.planner.memory import limits_of, needed_bytes, plan_memory
from flexgen_helm.planner.placement_problem import Instance, Multipliers, PlacementProblem, Times
from flexgen_helm.planner.plan import plan, predict
from flexgen_helm.planner.search import search
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Curve, Surface
from flexgen_helm.specs.placement import ON_DEVICE, Tier
from tests.planner.machines import CPU, GPU, SMALL, lengths, setup_of, workload

ANY = MemoryBudget()
SHAPE = Shape(
    micro_batch_size=25, num_micro_batches=4, micro_batch_tokens=1000, cached_tokens=20_000
)


@pytest.fixture
def small_grid(monkeypatch):
    """Few enough shapes to try all of them."""
    monkeypatch.setattr(search_module, "MICRO_BATCH_TOKENS", (256, 1024))
    monkeypatch.setattr(search_module, "MICRO_BATCH_SIZES", (32,))
    monkeypatch.setattr(search_module, "NUM_MICRO_BATCHES", (1, 8))
    monkeypatch.setattr(search_module, "CACHED_TOKENS", (1024, 4096, 16_384, 65_536))


def instance_of(hardware, shape=SHAPE, label="none", budget=ANY, forbidden=()):
    setup = setup_of(hardware, label)
    parts = list(phases(setup, hardware, lengths(), shape))
    limits = limits_of(setup, hardware, budget)
    return parts, Instance.of(
        Times.of(parts), needed_bytes(setup, shape, workload()), limits, forbidden
    )


def solve(instance):
    return PlacementProblem(len(instance.overlap_losses), len(instance.free_gigabytes)).solve(
        instance
    )


@pytest.mark.parametrize("device", [10**9, 600 * 10**6, 450 * 10**6])
@pytest.mark.parametrize("contention", [0.0, 0.3])
def test_no_placement_on_a_grid_is_faster(device, contention):
    hardware = replace(GPU, device_bytes=device, contention=contention)
    parts, instance = instance_of(hardware)
    solution = solve(instance)
    assert sum(p.seconds(solution.fractions) for p in parts) == pytest.approx(solution.seconds)
    thirds = [(a / 4, b / 4, (4 - a - b) / 4) for a in range(5) for b in range(5 - a)]
    num_fitting = 0
    for placed in product(thirds, repeat=3):
        values = np.array([part for group in placed for part in group])
        if np.all(instance.gigabytes @ values <= instance.free_gigabytes):
            num_fitting += 1
            fractions = dict(zip(VARIABLES, values, strict=True))
            assert sum(p.seconds(fractions) for p in parts) >= solution.seconds * (1 - 1e-6)
    assert num_fitting > 10


def test_memory_that_is_full_has_a_price():
    """Another GB of it saves about what its multiplier says, as long as it stays full."""
    hardware = replace(GPU, device_bytes=500 * 10**6)
    solution = solve(instance_of(hardware)[1])
    more = solve(instance_of(replace(hardware, device_bytes=501 * 10**6))[1])
    [price, *_] = solution.multipliers.memories
    assert price > 0
    assert (solution.seconds - more.seconds) / 0.001 == pytest.approx(price, rel=0.05)


@given(
    weights=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    prices=st.lists(st.floats(0, 100), min_size=3, max_size=3),
    device=st.integers(400, 2000),
)
@settings(deadline=None, max_examples=30)
def test_multipliers_bound_what_any_placement_takes(weights, prices, device):
    """Whatever they are, as long as those of a phase add up to one (weak duality)."""
    _, instance = instance_of(replace(GPU, device_bytes=device * 10**6))
    resources = np.array(weights) + 1e-9
    resources = (
        resources.reshape(2, 4) / resources.reshape(2, 4).sum(axis=1, keepdims=True)
    ).ravel()
    losses = np.repeat(instance.overlap_losses, 4)
    multipliers = Multipliers(
        resources=losses + (1 - losses) * resources, memories=np.array(prices)
    )
    [bound] = multipliers.bounds(Instance.stack([instance]))
    assert bound <= solve(instance).seconds * (1 + 1e-6)


def test_multipliers_of_the_solution_bound_it_closely():
    _, instance = instance_of(replace(GPU, device_bytes=500 * 10**6))
    solution = solve(instance)
    [bound] = solution.multipliers.bounds(Instance.stack([instance]))
    assert bound == pytest.approx(solution.seconds, rel=1e-6)


@pytest.mark.parametrize("hardware", [GPU, CPU, replace(CPU, device_bytes=500 * 10**6)])
@pytest.mark.parametrize("label", ["none", "w4-kv4"])
def test_the_search_finds_the_best_of_all_shapes(small_grid, hardware, label):
    setup, work = setup_of(hardware, label), workload()
    found = search(setup, hardware, work, ANY)
    limits = limits_of(setup, hardware, ANY)
    candidates = search_module._candidates(setup, hardware, work, limits, search_module.OURS)
    times = []
    for candidate in candidates:
        try:
            times.append(solve(candidate.instance).seconds)
        except InfeasibleError:
            continue
    assert found.solution.seconds <= min(times) * (1 + 2e-3)
    assert found.num_solved < found.num_shapes


def test_what_does_not_fit_is_infeasible():
    with pytest.raises(
        InfeasibleError, match="no policy of this model fits.*device memory of 10 MB"
    ):
        search(setup_of(GPU), replace(GPU, device_bytes=10**7), workload(), ANY)
    with pytest.raises(InfeasibleError, match="no placement fits"):
        solve(instance_of(GPU, replace(SHAPE, cached_tokens=10**8))[1])


def test_a_program_without_a_least_time_is_unbounded():
    """Were a rate negative, time would fall with what is moved."""
    _, instance = instance_of(GPU)
    problem = PlacementProblem(2, 3)
    with pytest.raises(UnboundedError, match="calibrate again"):
        problem.solve(replace(instance, overlap_losses=np.array([2.0, 2.0])))


def test_a_solver_that_fails_is_named(monkeypatch):
    import cvxpy as cp

    def fail(*_, **__):
        raise cp.SolverError("out of order")

    monkeypatch.setattr(cp.Problem, "solve", fail)
    with pytest.raises(SolverError, match="out of order.*give a policy instead"):
        solve(instance_of(GPU)[1])


def test_nothing_is_offloaded_that_fits():
    made = plan(SMALL, [Compression()], replace(GPU, device_bytes=10**10), workload())
    assert not made.offloads
    assert made.limits[-1] == "everything fits into the device's memory: nothing is offloaded"
    assert made.policy.weights == made.policy.cache == made.policy.activations == ON_DEVICE


def test_what_binds_is_said():
    slow_link = replace(
        GPU,
        device_bytes=200 * 10**6,
        host_to_device_bytes_per_s=2e8,
        host_attention_bytes_per_s=1e8,
    )
    made = plan(SMALL, [Compression()], slow_link, workload())
    assert made.offloads
    assert any("decode of some is bound by copying" in sentence for sentence in made.limits)
    assert any("1 GB more device memory would save" in sentence for sentence in made.limits)


def test_of_several_settings_the_fastest_is_taken():
    slow = replace(GPU, device_bytes=200 * 10**6, host_to_device_bytes_per_s=1e8)
    settings_ = [Compression(), Compression(weight_bits=4)]
    assert plan(SMALL, settings_, slow, workload()).compression == "w4"
    quick = replace(GPU, device_bytes=10**10)
    assert plan(SMALL, settings_, quick, workload()).compression == "none"


@pytest.mark.parametrize("label", ["none", "w4", "w4-kv4"])
@pytest.mark.parametrize("hardware", [GPU, CPU])
@pytest.mark.parametrize("device", [2 * 10**9, 900 * 10**6, 600 * 10**6])
def test_a_plan_keeps_what_it_promises(hardware, device, label):
    """The runtime's own count of what the policy takes, matrix by matrix, is within the budget,
    and leaves room for the KV cache."""
    hardware = replace(hardware, device_bytes=device)
    setup = setup_of(hardware, label)
    found = search(setup, hardware, workload(), ANY)
    budget = MemoryBudget(device=device, host=None if hardware.unified else hardware.host_bytes)
    counted = plan_memory(setup, found.policy, budget)
    assert counted.cache_tokens is not None
    assert counted.cache_tokens >= found.shape.cached_tokens * 0.999


def test_a_policy_is_predicted_as_it_was_planned():
    hardware = replace(GPU, device_bytes=600 * 10**6)
    made = plan(SMALL, [Compression()], hardware, workload())
    cached = made.policy.cache_bytes // 40_000
    again = predict(SMALL, Compression(), hardware, workload(), made.policy, cached_tokens=cached)
    assert again.predicted_s == pytest.approx(made.predicted_s, rel=1e-6)


RATES = (
    "attention_flop_per_s",
    "device_attention_bytes_per_s",
    "host_attention_bytes_per_s",
    "dequantized_cache_per_s",
    "quantized_cache_per_s",
    "host_to_device_bytes_per_s",
    "device_to_host_bytes_per_s",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "device_bytes",
    "host_bytes",
    "disk_bytes",
)


@given(
    better=st.lists(st.sampled_from([*RATES, "product_flop_per_s"]), min_size=1, max_size=3),
    factor=st.floats(1, 10),
    device=st.integers(300, 2000),
    label=st.sampled_from(["none", "w4-kv4"]),
)
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_better_machine_is_never_predicted_to_be_slower(
    small_grid, better, factor, device, label
):
    hardware = replace(GPU, device_bytes=device * 10**6)
    changes = {
        name: type(getattr(GPU, name))(getattr(hardware, name) * factor)
        for name in better
        if name in RATES
    }
    if "product_flop_per_s" in better:
        [(size, curve)] = GPU.product_flop_per_s.curves
        points = tuple((rows, rate * factor) for rows, rate in curve.points)
        changes["product_flop_per_s"] = Surface(((size, Curve(points)),))
    setup = setup_of(hardware, label)
    try:
        before = search(setup, hardware, workload(), ANY).solution.seconds
    except InfeasibleError:
        return
    after = search(setup, replace(hardware, **changes), workload(), ANY).solution.seconds
    assert after <= before * (1 + 2 * search_module.CLOSE_ENOUGH)


def test_tiny_fractions_are_left_out():
    fractions = dict.fromkeys(VARIABLES, 0.0)
    fractions |= {("weights", Tier.DEVICE): 0.9995, ("weights", Tier.DISK): 0.0005}
    assert placement_of(fractions, "weights") == ON_DEVICE


def test_linear_expressions_add_up():
    one = Linear(1, {("weights", Tier.DISK): 2.0})
    both = one + one * 2 + 1
    assert both.constant == 4
    assert both.slopes == {("weights", Tier.DISK): 6.0}
