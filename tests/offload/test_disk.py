import os

import pytest
import torch

from flexgen_helm.errors import StoreError
from flexgen_helm.offload import disk
from flexgen_helm.offload.disk import ALIGNMENT, aligned_buffer, aligned_up

SIZE = 5 * ALIGNMENT + 123


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(i * 7 % 251 for i in range(SIZE)))
    return path


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("request_bytes", [ALIGNMENT, 2 * ALIGNMENT, 1 << 20])
@pytest.mark.parametrize("first", [0, 2])
def test_reads_what_is_in_the_file(reader, file, direct, request_bytes, first, monkeypatch):
    monkeypatch.setattr(disk, "REQUEST_BYTES", request_bytes)
    if not direct:
        refuse_direct_reads(monkeypatch)
    start = first * ALIGNMENT
    buffer = aligned_buffer(SIZE - start)
    for future in reader.read(file, start, buffer):
        future.result()
    assert bytes(buffer[: SIZE - start].numpy()) == file.read_bytes()[start:]


def refuse_direct_reads(monkeypatch):
    """As some file systems do."""
    real_open = os.open

    def open_buffered(path, flags, *args):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real_open(path, flags, *args)

    monkeypatch.setattr(os, "open", open_buffered)


def test_a_file_that_is_gone(reader, tmp_path):
    [future] = reader.read(tmp_path / "gone", 0, aligned_buffer(1))
    with pytest.raises(StoreError, match="gone cannot be read .*check the disk"):
        future.result()


@pytest.mark.parametrize(("offset", "expected"), [(0, 0), (1, 4096), (4096, 4096), (4097, 8192)])
def test_aligned_up(offset, expected):
    assert aligned_up(offset) == expected
    assert len(aligned_buffer(offset)) == max(expected, 4096)
    assert aligned_buffer(offset).dtype == torch.uint8
