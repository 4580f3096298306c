from itertools import product

import pytest

from flexgen_helm.runtime.schedule import block_schedule, turns_of_pass


@pytest.mark.parametrize("num_layers", range(4))
@pytest.mark.parametrize("num_micro_batches", range(4))
def test_each_micro_batch_passes_each_layer_once_in_order(num_layers, num_micro_batches):
    steps = list(block_schedule(num_layers, num_micro_batches))
    turns = [(step.layer, step.micro_batch) for step in steps]
    assert turns == [*product(range(num_layers), range(num_micro_batches))]
    assert turns == [*turns_of_pass(num_layers, num_micro_batches)]
    assert [step.following for step in steps] == [*turns, None][1 : len(steps) + 1]


def test_weights_are_fetched_once_per_layer():
    fetched = [step.layer for step in block_schedule(3, 4) if step.begins_layer]
    assert fetched == [0, 1, 2]
    ended = [step for step in block_schedule(3, 4) if step.ends_layer]
    assert [(step.layer, step.micro_batch) for step in ended] == [(0, 3), (1, 3), (2, 3)]
