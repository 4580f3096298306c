from itertools import product

import pytest

from flexgen_helm.runtime.schedule import Half, block_schedule, turns_of_pass

SHAPES = [*product(range(4), range(4), (False, True))]


@pytest.mark.parametrize(("num_layers", "num_micro_batches", "apart"), SHAPES)
def test_each_micro_batch_passes_each_layer_once_in_order(num_layers, num_micro_batches, apart):
    steps = [*block_schedule(num_layers, num_micro_batches, apart=apart)]
    turns = [*product(range(num_layers), range(num_micro_batches))]
    assert turns == [*turns_of_pass(num_layers, num_micro_batches)]
    for half in Half:
        assert [(step.layer, step.micro_batch) for step in steps if step.half is half] == turns
    following = [step.following for step in steps if step.half is Half.PROJECT]
    assert following == [*turns, None][1 : len(turns) + 1]
    assert all(step.following is None for step in steps if step.half is Half.FINISH)


@pytest.mark.parametrize(("num_layers", "num_micro_batches", "apart"), SHAPES)
def test_a_layer_is_fetched_once_and_ends_before_the_next_one(num_layers, num_micro_batches, apart):
    steps = [*block_schedule(num_layers, num_micro_batches, apart=apart)]
    layers = range(num_layers) if num_micro_batches else []
    assert [step.layer for step in steps if step.begins_layer] == [*layers]
    assert [step.layer for step in steps if step.ends_layer] == [*layers]
    assert [step.layer for step in steps] == sorted(step.layer for step in steps)


def test_halves_follow_each_other_unless_attention_goes_on_elsewhere():
    def halves(**options):
        steps = block_schedule(1, 3, **options)
        return [f"{step.half.name[0]}{step.micro_batch}" for step in steps]

    assert halves() == ["P0", "F0", "P1", "F1", "P2", "F2"]
    assert halves(apart=True) == ["P0", "P1", "F0", "P2", "F1", "F2"]
