import gc
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexgen_helm.errors import DiskFullError, StoreError
from flexgen_helm.offload.disk import ALIGNMENT
from flexgen_helm.offload.records import RecordLayout
from flexgen_helm.offload.spill import Spill


@pytest.fixture(params=[True, False], ids=["overlap", "serial"])
def spill(request, tmp_path):
    spill = Spill(tmp_path, overlap=request.param)
    yield spill
    spill.close()
    assert not [*tmp_path.iterdir()], "nothing is left on disk"


def tensors(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    dtypes = [torch.float32, torch.uint8, torch.bfloat16]
    return [
        torch.randint(0, 200, (size, 3), generator=generator).to(dtypes[i % 3])
        for i, size in enumerate(sizes)
    ]


def append(region, record):
    region.append_copy(RecordLayout.of(record), record)


def contents(region):
    with region.read() as records:
        return [[tensor.clone() for tensor in record] for record in records]


def assert_equal(records, expected):
    assert len(records) == len(expected)
    for record, other in zip(records, expected, strict=True):
        for one, two in zip(record, other, strict=True):
            assert one.dtype == two.dtype
            assert torch.equal(one, two)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 4000), min_size=1, max_size=3)),
        max_size=12,
    )
)
def test_regions_hold_what_was_appended_whatever_came_and_went(spill, steps):
    regions, written = {}, {}
    for seed, (which, sizes) in enumerate(steps):
        if len(written.get(which, [])) == 3:
            assert_equal(contents(regions.pop(which)), written.pop(which))
        if which not in regions:
            regions[which], written[which] = spill.region(200_000), []
        record = tensors(seed, sizes)
        append(regions[which], record)
        written[which].append(record)
        regions[which].begin_read()
        assert_equal(contents(regions[which]), written[which])
    for which, records in written.items():
        assert_equal(contents(regions[which]), records)


def test_what_is_let_go_of_is_used_again(spill):
    regions = [spill.region(3 * ALIGNMENT) for _ in range(4)]
    assert spill.num_bytes == 12 * ALIGNMENT
    del regions[1:3]
    gc.collect()
    assert spill.num_bytes == 6 * ALIGNMENT
    between = spill.region(6 * ALIGNMENT)
    assert spill.num_bytes == spill.peak_bytes == spill._end == 12 * ALIGNMENT
    del between


@pytest.mark.parametrize("locked", ["spill", "buffers"])
def test_garbage_may_be_collected_while_anything_is_locked(spill, monkeypatch, locked):
    owner, name = {"spill": (spill._file, "allocate"), "buffers": (spill.buffers, "_make")}[locked]
    store, method = spill._file.store, getattr(owner, name)
    collecting = threading.Event()

    def store_late(*given):
        assert collecting.wait(10)
        store(*given)

    def collect_first(*given):
        collecting.set()
        gc.collect()
        return method(*given)

    def use():
        gc.collect()  # which does not run by itself for a while then
        lost = [spill.region(ALIGNMENT)]
        lost.append(lost)  # so that only the garbage collector finds it
        if spill.overlap:
            append(lost[0], [torch.zeros(4)])
        monkeypatch.setattr(owner, name, collect_first)
        del lost
        kept.append(spill.region(2 * ALIGNMENT))
        spill.buffers.take(ALIGNMENT)

    monkeypatch.setattr(spill._file, "store", store_late)
    kept = []
    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert spill.num_bytes == 2 * ALIGNMENT


def test_a_region_is_reserved_before_it_is_used(tmp_path):
    spill = Spill(tmp_path, limit_bytes=4 * ALIGNMENT)
    region = spill.region(3 * ALIGNMENT)
    with pytest.raises(StoreError, match=f"{5 * ALIGNMENT} bytes are needed on disk"):
        spill.region(2 * ALIGNMENT)
    assert spill.num_bytes == 3 * ALIGNMENT
    del region
    spill.close()


def test_an_error_of_the_disk_says_what_to_do(spill, monkeypatch):
    region = spill.region(ALIGNMENT)

    def fail(buffer, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill._file, "store", fail)

    def write_and_wait():
        append(region, [torch.zeros(4)])
        contents(region)

    with pytest.raises(StoreError, match="No space left on device.*free space there"):
        write_and_wait()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another offload directory"):
        Spill(tmp_path / "file")


def test_records_of_the_same_layout_are_lent_as_one(spill):
    region = spill.region(100 * ALIGNMENT)
    append(region, tensors(9, [50]))
    sizes = [700, 0, 300]  # of three dtypes, and more than one block of the disk
    records = [tensors(seed, sizes) for seed in range(4)]
    for record in records:
        append(region, record)
    with region.read() as read:
        stacked = read.stacked(1)
        assert_equal([stacked], [[torch.stack(part) for part in zip(*records, strict=True)]])
        assert_equal([*read.until(2)], [tensors(9, [50]), records[0]])


def test_the_last_records_can_be_made_one(spill):
    region = spill.region(5 * ALIGNMENT)
    records = [tensors(seed, [100]) for seed in range(4)]
    for record in records[:3]:
        append(region, record)
    assert_equal(contents(region), records[:3])
    joined = [torch.stack([record[0] for record in records[1:3]])]
    layout = RecordLayout.of(joined)
    buffer = spill.buffers.take(layout.num_bytes)
    layout.views(buffer)[0].copy_(joined[0])
    region.replace_last(2, layout, buffer)
    assert region.num_bytes == 2 * ALIGNMENT
    append(region, records[3])
    region.begin_read()
    assert_equal(contents(region), [records[0], joined, records[3]])


def test_what_is_ahead_takes_memory_until_it_is_read(spill):
    region = spill.region(2 * ALIGNMENT)
    append(region, tensors(0, [100]))
    taken = region.begin_read()
    assert taken == (2 * ALIGNMENT if spill.overlap else 0)
    assert region.begin_read() == taken
    contents(region)
    assert region._ahead is None


def test_what_was_begun_to_be_read_is_forgotten(spill):
    region = spill.region(ALIGNMENT)
    append(region, [torch.ones(4)])
    assert region.begin_read() == (ALIGNMENT if spill.overlap else 0)
    region.forget_read()
    region.forget_read()
    assert region._ahead is None
    assert len(spill.buffers._idle) == 1
    [[ones]] = contents(region)
    assert torch.equal(ones, torch.ones(4))


def test_a_disk_that_is_full_is_told_from_one_that_is_broken(spill):
    assert isinstance(spill.explain(OSError(28, "No space left on device")), DiskFullError)
    assert type(spill.explain(OSError(5, "Input/output error"))) is StoreError
