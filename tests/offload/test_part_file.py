import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from flexgen_helm.errors import StoreError
from flexgen_helm.offload.part_file import ALIGNMENT, Entry, PartFile, PartWriter

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8]


def ramp(dtype, *shape):
    count = torch.Size(shape).numel()
    return (torch.arange(count) % 100).reshape(shape).to(dtype)


def write(path, tensors, identity="x"):
    entries = {name: Entry(x.dtype, tuple(x.shape)) for name, x in tensors.items()}
    with PartWriter(path, entries, identity) as file:
        for name, tensor in tensors.items():
            for rows in tensor.split(2):
                file.write(name, rows)


@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.integers(1, 5), st.integers(1, 9)), min_size=1
    )
)
def test_other_programs_read_what_was_written(shapes, tmp_path_factory):
    path = tmp_path_factory.mktemp("part") / "part.safetensors"
    tensors = {f"t{i}": ramp(*shape) for i, shape in enumerate(shapes)}
    write(path, tensors)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)

    regions = PartFile.open(path).regions
    assert min(region.offset for region in regions.values()) % ALIGNMENT == 0
    assert all(region.offset % region.entry.dtype.itemsize == 0 for region in regions.values())


def test_a_file_says_what_it_was_made_from(tmp_path):
    write(tmp_path / "a", {"t": ramp(torch.uint8, 3, 3)}, identity="this and that")
    assert PartFile.open(tmp_path / "a").identity == "this and that"


def test_files_that_are_no_parts(tmp_path):
    with pytest.raises(StoreError, match="nothing is no part of a weight store .*convert"):
        PartFile.open(tmp_path / "nothing")
    (tmp_path / "text").write_text("some other file, longer than eight bytes")
    with pytest.raises(StoreError, match="text is no part of a weight store"):
        PartFile.open(tmp_path / "text")


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: [header],
        lambda header: {**header, "t": "x"},
        lambda header: {**header, "t": {**header["t"], "shape": "ab"}},
        lambda header: {**header, "__metadata__": {"crc32": 5}},
    ],
)
def test_a_part_whose_header_says_something_else(tmp_path, damage):
    path = tmp_path / "a"
    write(path, {"t": ramp(torch.uint8, 3, 3)})
    content = path.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(damage(json.loads(content[8:data_start]))).encode()
    path.write_bytes(content[:8] + header.ljust(data_start - 8) + content[data_start:])
    with pytest.raises(StoreError, match="a is no part of a weight store .*convert"):
        PartFile.open(path)


def test_a_part_that_was_cut_short(tmp_path):
    path = tmp_path / "a"
    write(path, {"t": ramp(torch.uint8, 3, 3)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=f"has {ALIGNMENT + 8} bytes instead of {ALIGNMENT + 9}"):
        PartFile.open(path)
