"""Instances as tokens, with the right continuation as label wherever it is determined.

Every prefix of a bracket sequence is itself a Dyck instance, so every position of it has a label:
the bracket that closes the innermost open one, or a line break where none is open.
"""

import random
from collections.abc import Sequence

from helm.benchmark.scenarios.scenario import Instance
from tokenizers import Tokenizer

from flexgen_helm.embedded.instances import PAIRS, DyckShape, evaluated_shapes
from flexgen_helm.embedded.prompts import IGNORED, Tokens

CLOSING: dict[str, str] = dict(PAIRS)
DEEPEST_HINT = 23
FIRST_SLOT_HINT = DEEPEST_HINT + 1
FIRST_RULE_HINT = FIRST_SLOT_HINT + 7
HINTS = FIRST_RULE_HINT + 4


def with_types(shape: str, pairs: Sequence[tuple[str, str]], rng: random.Random) -> list[str]:
    """Draw a type for every bracket pair, as HELM's generator does (uniform, independent)."""
    symbols, stack = [], []
    for mark in shape:
        if mark == "(":
            opening, closing = rng.choice(pairs)
            stack.append(closing)
            symbols.append(opening)
        else:
            symbols.append(stack.pop())
    return symbols


def next_closings(symbols: Sequence[str]) -> list[tuple[str, int]]:
    """After each symbol: what closes the innermost open bracket (line break if none), and depth."""
    stack: list[str] = []
    result = []
    for symbol in symbols:
        if symbol in CLOSING:
            stack.append(CLOSING[symbol])
        else:
            assert stack.pop() == symbol
        result.append((stack[-1] if stack else "\n", len(stack)))
    return result


def reasoning_hints(source: str, target: str) -> list[int]:
    """One hint for each target word and one for the end: what the answer is being read from.

    Substitution: the pattern slot that the word comes from. Pattern match: the matching rule.
    """
    count = len(target.split()) + 1
    if "Substitutions:" in source:
        return [FIRST_SLOT_HINT + slot for slot in substitution_slots(source)]
    if "Result:" in source:
        rules = source.removeprefix("Rules: ").split(" | ")
        return [FIRST_RULE_HINT + rules.index(target)] * count
    return [IGNORED] * count


def substitution_slots(source: str) -> list[int]:
    """The pattern slot each target word comes from, and one past the last slot for the end."""
    pattern, _, pairs = source.removeprefix("Rules: ").partition(" | Substitutions: ")
    parts = [part.split(' by " ') for part in pairs.removesuffix(' "').split(' " , ')]
    lengths = {symbol: len(words.split()) for symbol, words in parts}
    slots = pattern.split()
    repeated = [[slot] * lengths.get(symbol, 1) for slot, symbol in enumerate(slots)]
    return [slot for run in repeated for slot in run] + [len(slots)]


class Encoder:
    """Turns instances into `Tokens` with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.break_id = self.ids("\n")[0]
        self._brackets = {
            symbol: self.ids(f" {symbol}")[0] for pair in PAIRS for symbol in pair
        } | {"\n": self.break_id}

    def ids(self, text: str) -> list[int]:
        """Token ids without the leading `</s>`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def dyck(
        self, shape: DyckShape, *, pairs: Sequence[tuple[str, str]], rng: random.Random
    ) -> Tokens:
        """`Input: ( [` and its closings; prefixes that HELM evaluates carry no label."""
        start = self.ids("Input:")
        whole = shape.prefix + ")" * shape.closings
        symbols = with_types(whole, pairs, rng)
        labels, hints = [], []
        for length, (closing, depth) in enumerate(next_closings(symbols), start=1):
            asked_by_helm = whole[:length] in evaluated_shapes()
            labels.append(IGNORED if asked_by_helm else self._brackets[closing])
            hints.append(min(depth, DEEPEST_HINT))
        unlabelled = [IGNORED] * len(start)
        return Tokens(
            ids=start + [self._brackets[symbol] for symbol in symbols],
            labels=unlabelled + labels,
            hints=unlabelled + hints,
        )

    def reasoning(self, instance: Instance) -> Tokens:
        """`Rules: ...`, then `Target: ...`; the target and its line break are labelled."""
        reference = instance.first_correct_reference
        assert reference is not None
        source = self.ids(f"{instance.input.text}\nTarget:")
        target = self.ids(f" {reference.output.text}")
        hints = reasoning_hints(instance.input.text, reference.output.text)
        # The colon of induction's `Rule:` is a token of its own, but induction has no hints.
        hints += [IGNORED] * (len(target) + 1 - len(hints))
        quiet = [IGNORED] * (len(source) - 1)
        return Tokens(
            ids=source + target,
            labels=[*quiet, *target, self.break_id],
            hints=[*quiet, *hints],
        )
