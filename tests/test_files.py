import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from flexgen_helm.files import (
    check_writable,
    delete_abandoned,
    write_atomically,
    write_text_atomically,
)


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


def test_threads_may_write_one_file_at_a_time(tmp_path):
    path = tmp_path / "file.txt"
    both = threading.Barrier(2)

    def write(temporary, text):
        with temporary.open("w") as stream:
            both.wait(60)
            stream.write(text)

    with ThreadPoolExecutor(2) as threads:
        texts = ["short", 100 * "long "]
        for written in [
            threads.submit(write_atomically, path, partial(write, text=text)) for text in texts
        ]:
            written.result()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    synced = []

    def fsync(descriptor):
        synced.append((os.pread(descriptor, 100, 0), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text_atomically(path, "new")
    assert synced == [(b"new", False)]


def test_what_killed_processes_left_is_deleted(tmp_path):
    script = f"""
import os, pathlib
from flexgen_helm.files import write_atomically
path = pathlib.Path({str(tmp_path)!r}) / "layer.0.safetensors"
write_atomically(path, lambda temporary: (temporary.touch(), os.kill(os.getpid(), 9)))
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    [left] = tmp_path.iterdir()
    others = [f".layer.1.{os.getpid()}.tmp", ".layer.2.1.tmp", ".layer.tmp", "layer.0", "9.tmp"]
    for name in others:
        (tmp_path / name).touch()
    delete_abandoned(tmp_path)
    assert not left.exists()
    assert {file.name for file in tmp_path.iterdir()} == set(others)


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
