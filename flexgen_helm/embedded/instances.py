"""Training instances, drawn with HELM's own generators and disjoint from those HELM evaluates."""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from helm.benchmark.scenarios.dyck_language_scenario import DyckLanguageScenario
from helm.benchmark.scenarios.scenario import Instance
from helm.benchmark.scenarios.synthetic_reasoning_scenario import SyntheticReasoningScenario

MODES = ("variable_substitution", "pattern_match", "induction")
PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ("<", ">"))


@dataclass(frozen=True, kw_only=True)
class DyckShape:
    """A Dyck prefix with its bracket types forgotten: HELM draws the types independently."""

    prefix: str
    """`(` and `)` only, without spaces: the input HELM would ask about."""
    closings: int
    """How many brackets are still open after the prefix."""


def shape_of(text: str) -> str:
    """Forget the bracket types and spaces of a Dyck input: `[ { }` becomes `(()`."""
    openings = {pair[0] for pair in PAIRS}
    return "".join("(" if symbol in openings else ")" for symbol in text.split())


@cache
def evaluated_shapes() -> frozenset[str]:
    """Shapes of every Dyck input of HELM's default scenarios, few-shot examples included.

    HELM draws the types from a second random stream, so two, three and four pairs share shapes.
    """
    # HELM's generator seeds the global random states, which belong to our caller.
    states = random.getstate(), np.random.get_state()
    instances = DyckLanguageScenario(num_parenthesis_pairs=3).get_instances("")
    random.setstate(states[0])
    np.random.set_state(states[1])
    return frozenset(shape_of(instance.input.text) for instance in instances)


def dyck_shapes(*, seed: int, count: int, long: bool) -> list[DyckShape]:
    """`count` shapes as long as HELM's test inputs, or else as its few-shot examples."""
    evaluated = evaluated_shapes()
    random.seed(seed)
    np.random.seed(seed)
    scenario = DyckLanguageScenario(num_parenthesis_pairs=1)
    bounds = (
        (scenario.min_seq_test_length, scenario.max_seq_test_length)
        if long
        else (scenario.min_seq_train_length, scenario.max_seq_train_length)
    )
    shapes: list[DyckShape] = []
    while len(shapes) < count:
        text, output = scenario.create_input_output(*bounds)
        prefix = shape_of(text)
        if prefix not in evaluated:
            shapes.append(DyckShape(prefix=prefix, closings=len(output.split())))
    return shapes


@cache
def evaluated_inputs(mode: str) -> frozenset[str]:
    """Every input of HELM's default synthetic reasoning scenario, in all three splits."""
    instances = SyntheticReasoningScenario(mode=mode).get_instances("")
    return frozenset(instance.input.text for instance in instances)


def reasoning_instances(mode: str, *, seed: int, count: int) -> list[Instance]:
    """About `count` instances of one mode, from HELM's generator with another seed than HELM's."""
    scenario = SyntheticReasoningScenario(mode=mode, random_seed=seed)
    scenario.num_train_instances = count
    scenario.num_val_instances = scenario.num_test_instances = 0
    drawn = scenario.get_instances("")
    return [instance for instance in drawn if instance.input.text not in evaluated_inputs(mode)]
