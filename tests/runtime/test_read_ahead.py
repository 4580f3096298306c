import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.runtime.read_ahead import ReadAhead
from flexgen_helm.runtime.schedule import Turn


class Reads:
    """Notes which turns were begun."""

    def __init__(self, sizes, most_bytes, most_turns=None):
        self.begun = []
        turns = [Turn(0, index) for index in range(len(sizes))]
        self.ahead = ReadAhead(turns, self.begin, most_bytes=most_bytes, most_turns=most_turns)
        self._sizes = sizes

    def begin(self, turn):
        self.begun.append(turn.micro_batch)
        return self._sizes[turn.micro_batch]


def test_as_much_is_ahead_as_there_is_memory_for():
    reads = Reads([5] * 6, most_bytes=15)
    reads.ahead.advance()
    assert reads.begun == [1, 2]
    reads.ahead.advance()
    assert reads.begun == [1, 2, 3]


def test_the_next_turn_is_read_however_large():
    reads = Reads([50] * 3, most_bytes=1)
    reads.ahead.advance()
    assert reads.begun == [1]


@pytest.mark.parametrize(
    ("size", "ahead"),
    [
        (20, 2),  # 60 with the one that has come
        (10, 4),  # 50, half of what may be
        (33, 2),
        (34, 1),  # three are more than may be
    ],
)
def test_few_turns_are_ahead_unless_they_are_small(size, ahead):
    reads = Reads([size] * 9, most_bytes=100, most_turns=3)
    reads.ahead.advance()
    assert reads.begun == [*range(1, 1 + ahead)]


def test_turns_that_read_nothing_are_passed_over():
    reads = Reads([0, 0, 0, 7, 7], most_bytes=5)
    reads.ahead.advance()
    assert reads.begun == [1, 2, 3]


@given(
    st.lists(st.integers(0, 20), max_size=30),
    st.integers(0, 40),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_each_turn_but_the_first_is_begun_once_before_it_comes(sizes, most_bytes, most_turns):
    reads = Reads(sizes, most_bytes, most_turns)
    for turn in range(len(sizes)):
        assert turn == 0 or turn in reads.begun
        reads.ahead.advance()
        in_memory = [sizes[index] for index in reads.begun[turn:]]
        if turn and len(in_memory) > 1:
            in_memory.append(sizes[turn])
            assert sum(in_memory) <= most_bytes + max(in_memory), "one may be larger than expected"
    assert reads.begun == [*range(1, len(sizes))]
