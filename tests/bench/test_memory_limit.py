"""Control groups, on a directory that looks like the kernel's."""

import os

import pytest

from flexgen_helm.bench.memory_limit import MemoryLimit, join


@pytest.fixture(params=["1", "2"])
def root(request, tmp_path, monkeypatch):
    """Where control groups of a version are; removing one also removes its files, as there."""
    groups = tmp_path / "memory" if request.param == "1" else tmp_path
    groups.mkdir(exist_ok=True)
    peak = "memory.max_usage_in_bytes" if request.param == "1" else "memory.peak"

    def remove(directory):
        for file in directory.iterdir():
            file.unlink()
        os.rmdir(directory)  # noqa: PTH106 - what is replaced below

    monkeypatch.setattr("pathlib.Path.rmdir", remove)
    return tmp_path, groups, peak


def test_a_group_has_its_limit_and_its_processes_and_is_removed(root):
    tmp_path, groups, peak = root
    with MemoryLimit.make(1 << 30, root=tmp_path) as group:
        [directory] = [path for path in groups.iterdir() if path.name.startswith("flexgen_helm")]
        limits = ("memory.limit_in_bytes", "memory.max")
        assert [f.read_text() for n in limits if (f := directory / n).exists()] == [str(1 << 30)]
        join(group.directory)
        assert (directory / "cgroup.procs").read_text() == str(os.getpid())
        assert group.peak_bytes is None
        (directory / peak).write_text("12345\n")
        assert group.peak_bytes == 12345
    assert not directory.exists()


def test_without_the_right_to_make_one_there_is_none(tmp_path):
    with MemoryLimit.make(1 << 30, root=tmp_path / "missing") as group:
        assert group is None
