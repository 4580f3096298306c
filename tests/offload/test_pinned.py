import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.errors import BudgetError
from flexgen_helm.offload.pinned import PinnedPool

PAGE = 4096


class Runtime:
    """What there is to register memory with."""

    def __init__(self, code=0):
        self.code, self.registered = code, {}

    def cudaHostRegister(self, address, num_bytes, _):  # noqa: N802 - as CUDA calls it
        self.registered[address] = num_bytes
        return self.code

    def cudaHostUnregister(self, address):  # noqa: N802
        del self.registered[address]


@pytest.fixture
def runtime(monkeypatch):
    made = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    return made


def test_memory_is_registered_as_long_as_the_pool_has_it(runtime):
    pool = PinnedPool()
    buffer = pool.lend(PAGE + 1)
    assert runtime.registered == {buffer.data_ptr(): 2 * PAGE}
    assert len(buffer) == 2 * PAGE
    assert not buffer.any()
    del buffer
    gc.collect()
    assert sum(runtime.registered.values()) == 2 * PAGE
    del pool
    gc.collect()
    assert not runtime.registered


def test_what_comes_back_is_lent_again_as_zeros(runtime):
    pool = PinnedPool()
    first = pool.lend(PAGE)
    part, address = first[100:].fill_(1), first.data_ptr()
    del first
    assert pool.lend(PAGE).data_ptr() != address, "a part of it is in use"
    del part
    gc.collect()
    again = [pool.lend(PAGE) for _ in range(2)]
    assert address in [buffer.data_ptr() for buffer in again]
    assert not any(buffer.any() for buffer in again)
    assert len(runtime.registered) == 2


def test_what_need_not_be_zeros_is_lent_as_it_is(runtime):
    pool = PinnedPool()
    pool.lend(PAGE).fill_(1)
    gc.collect()
    assert pool.lend(PAGE, zeros=False).all()


def test_what_is_lent_outlives_the_pool(runtime):
    buffer = PinnedPool().lend(PAGE)
    gc.collect()
    buffer.fill_(1)
    assert runtime.registered
    del buffer
    gc.collect()
    assert not runtime.registered


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=40))
def test_no_more_is_pinned_than_was_lent_at_some_time(steps):
    runtime = Runtime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "cudart", lambda: runtime)
        pool, lent, most = PinnedPool(), [], 0
        for lends, number in steps:
            if lends:
                lent.append(pool.lend((number + 1) * PAGE))
            elif lent:
                lent.pop(number % len(lent))
            most = max(most, sum(map(len, lent)))
            assert sum(runtime.registered.values()) == pool.num_bytes <= most
            assert len({buffer.data_ptr() for buffer in lent}) == len(lent)
        del lent, pool


def test_memory_that_cannot_be_pinned_is_an_error(runtime):
    pool, runtime.code = PinnedPool(), 2
    with pytest.raises(BudgetError, match="4096 bytes of the host's memory cannot be pinned"):
        pool.lend(PAGE)
    assert pool.num_bytes == 0
