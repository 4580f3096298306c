import os
from pathlib import Path

import pytest

from flexgen_helm.files import check_writable, write_atomically, write_text_atomically


def test_makes_directories_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text_atomically(path, "naïve")
    assert path.read_text(encoding="utf-8") == "naïve"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    synced = []

    def fsync(descriptor):
        synced.append((os.pread(descriptor, 100, 0), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text_atomically(path, "new")
    assert synced == [(b"new", False)]


def test_what_could_be_written_is_known_before(tmp_path):
    path = tmp_path / "new" / "file.txt"
    check_writable(path)
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"
    for nowhere in (path.parent, path / "below", "/proc/xx/file"):
        with pytest.raises(OSError, match=r"\w"):
            check_writable(Path(nowhere))
