"""Parts that are read ahead of their use, also where the disk fails."""

import errno
import os
import threading
from contextlib import suppress

import pytest
import torch

from flexgen_helm.errors import StoreError
from flexgen_helm.offload import disk
from flexgen_helm.offload.disk import ALIGNMENT, aligned_buffer
from flexgen_helm.offload.disk_part import DiskPart, PartRead
from flexgen_helm.offload.part_file import Entry, PartFile, PartWriter
from flexgen_helm.offload.parts_ahead import OffDevice, PartsFromDisk, PartsToDevice
from flexgen_helm.offload.waiting import Waiting
from tests.offload.fake_link import FakeLink

NAMES = ("first", "second", "third")


@pytest.fixture
def broken(monkeypatch):
    """An event: while it is set, nothing can be read."""
    event, fill = threading.Event(), disk.DirectFile.fill

    def fill_unless_broken(file, buffer, offset):
        if event.is_set():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fill(file, buffer, offset)

    monkeypatch.setattr(disk.DirectFile, "fill", fill_unless_broken)
    return event


def part_of(path, number, num_bytes=100):
    """A part of one tensor, whose numbers are all the same."""
    with PartWriter(path, {"t": Entry(torch.uint8, (num_bytes,))}, "x") as file:
        file.write("t", torch.full((num_bytes,), number, dtype=torch.uint8))
    file = PartFile.open(path)
    return DiskPart(file, file.regions)


def parts_ahead(directory, reader, *, linked):
    parts = {name: part_of(directory / name, number) for number, name in enumerate(NAMES)}
    options = {"overlap": True, "waiting": Waiting()}
    if not linked:
        return PartsFromDisk(parts, reader, **options)
    nothing = torch.empty(0, dtype=torch.uint8)
    off_device = {
        name: OffDevice(DiskPart(part.file, {}), nothing, part) for name, part in parts.items()
    }
    link = FakeLink(eager=True)
    return PartsToDevice(off_device, reader, link, torch.device("cpu"), **options)


@pytest.mark.parametrize("linked", [False, True])
def test_a_disk_that_is_back_is_read_again(tmp_path, reader, broken, linked):
    ahead = parts_ahead(tmp_path, reader, linked=linked)
    for failing in NAMES:
        broken.set()
        with suppress(StoreError):  # it may be there already
            ahead.take(failing)
        with pytest.raises(StoreError, match="cannot be read .*check the disk"):
            ahead.take(failing)
        broken.clear()
        for number, name in enumerate(NAMES):
            assert set(ahead.take(name)["t"].tolist()) == {number}
    ahead.close()


def test_a_read_that_failed_has_ended(tmp_path, reader, monkeypatch):
    """Others get its memory."""
    monkeypatch.setattr(disk, "REQUEST_BYTES", ALIGNMENT)
    part = part_of(tmp_path / "part", 7, 2 * ALIGNMENT)
    fill, goes_on = disk.DirectFile.fill, threading.Event()

    def fill_late(file, buffer, offset):
        if offset == ALIGNMENT:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        assert goes_on.wait(60)
        fill(file, buffer, offset)

    monkeypatch.setattr(disk.DirectFile, "fill", fill_late)
    buffer = aligned_buffer(part.num_bytes)
    reading = PartRead(part, buffer, reader)
    threading.Timer(0.1, goes_on.set).start()
    with pytest.raises(StoreError, match="cannot be read"):
        reading.finish()
    assert 7 in buffer.tolist(), "it is still being written to"
