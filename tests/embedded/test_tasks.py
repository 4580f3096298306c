"""Labels are the answers that HELM's own scenarios give."""

import random

import pytest
from helm.benchmark.scenarios.dyck_language_scenario import DyckLanguageScenario
from transformers import AutoTokenizer

from flexgen_helm.embedded import checkpoint_path
from flexgen_helm.embedded.batches import PAD, START, collate
from flexgen_helm.embedded.instances import (
    PAIRS,
    DyckShape,
    dyck_shapes,
    evaluated_shapes,
    reasoning_instances,
)
from flexgen_helm.embedded.prompts import IGNORED, few_shot
from flexgen_helm.embedded.tasks import (
    FIRST_SLOT_HINT,
    Encoder,
    next_closings,
    reasoning_hints,
    substitution_slots,
    with_types,
)

TOKENIZER = AutoTokenizer.from_pretrained(checkpoint_path())
ENCODER = Encoder(TOKENIZER.backend_tokenizer)


@pytest.mark.parametrize("shape", dyck_shapes(seed=5, count=20, long=False), ids=str)
def test_a_label_is_what_helm_says_closes_the_prefix(shape: DyckShape) -> None:
    symbols = with_types(shape.prefix, PAIRS, random.Random(0))
    scenario = DyckLanguageScenario(num_parenthesis_pairs=4)
    for length, (closing, depth) in enumerate(next_closings(symbols), start=1):
        output = scenario.get_output(symbols[:length])
        assert depth == len(output)
        assert closing == (output[0] if output else "\n")


def test_dyck_tokens_are_the_prompt_and_its_labels() -> None:
    tokens = ENCODER.dyck(
        DyckShape(prefix="(()", closings=1), pairs=[("[", "]")], rng=random.Random(0)
    )
    assert TOKENIZER.decode(tokens.ids) == "Input: [ [ ] ]"
    assert TOKENIZER.decode(tokens.labels[2:]) == " ] ] ]\n"
    assert tokens.labels[:2] == [IGNORED] * 2
    assert tokens.hints[2:] == [1, 2, 1, 0]


def test_a_prefix_that_helm_asks_about_has_no_label() -> None:
    asked = min(evaluated_shapes(), key=len)
    open_brackets = asked.count("(") - asked.count(")")
    longer = DyckShape(prefix=asked + "()", closings=open_brackets)
    labels = ENCODER.dyck(longer, pairs=PAIRS, rng=random.Random(0)).labels
    start = len(ENCODER.ids("Input:"))
    assert labels[start + len(asked) - 1] == IGNORED
    assert labels[-1] == ENCODER.break_id


def test_reasoning_labels_spell_the_target_and_a_line_break() -> None:
    (instance, *_) = reasoning_instances("variable_substitution", seed=9, count=5)
    tokens = ENCODER.reasoning(instance)
    target = instance.references[0].output.text
    assert TOKENIZER.decode(tokens.ids) == f"{instance.input.text}\nTarget: {target}"
    labels = [label for label in tokens.labels if label != IGNORED]
    assert TOKENIZER.decode(labels) == f" {target}\n"


def test_slots_repeat_for_substitutions_of_two_words() -> None:
    source = 'Rules: Y + X Y | Substitutions: X by " rat " , Y by " kiwi pear "'
    assert substitution_slots(source) == [0, 0, 1, 2, 3, 3, 4]
    hints = reasoning_hints(source, "kiwi pear + rat kiwi pear")
    assert hints == [FIRST_SLOT_HINT + slot for slot in (0, 0, 1, 2, 3, 3, 4)]


def test_collate_pads_on_the_right_and_keeps_the_start_at_position_zero() -> None:
    example = ENCODER.dyck(
        DyckShape(prefix="((", closings=2), pairs=[("(", ")")], rng=random.Random(0)
    )
    long = few_shot([example, example], instructions=[START], gap=ENCODER.break_id)
    short = few_shot([example], instructions=[START], gap=ENCODER.break_id)
    batch = collate([long, short], [0, 7])
    assert batch.ids[1, len(short) :].eq(PAD).all()
    assert batch.positions[1, :3].tolist() == [0, 8, 9]
    assert batch.labels[1, len(short) :].eq(IGNORED).all()
