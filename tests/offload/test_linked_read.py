from flexgen_helm.offload.linked_read import LinkedRead
from tests.offload.fake_link import FakeLink


def begin_into(begun):
    def begin():
        begun.append(len(begun))
        return begun[-1]

    return begin


def test_what_was_begun_ahead_is_taken_once():
    begun = []
    read, begin = LinkedRead(FakeLink(eager=True), num_bytes=5), begin_into(begun)
    assert [read.begin(begin), read.begin(begin)] == [5, 5]
    assert begun == [0]
    assert read.begun
    assert [read.take(begin), read.take(begin)] == [0, 1]
    assert not read.begun


def test_nothing_is_begun_ahead_without_overlap():
    begun = []
    read, begin = LinkedRead(FakeLink(eager=True, overlap=False), num_bytes=5), begin_into(begun)
    assert read.begin(begin) == 0
    assert begun == []
    assert read.take(begin) == 0
