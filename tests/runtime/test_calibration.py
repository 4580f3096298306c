import errno
import os

import pytest
import torch

from flexgen_helm.cli.main import main
from flexgen_helm.errors import StoreError
from flexgen_helm.offload.disk import REQUEST_BYTES, DirectFile
from flexgen_helm.runtime import calibration
from flexgen_helm.runtime.calibration import computing, disk, engines, shapes, timing
from flexgen_helm.specs.hardware import read_hardware


@pytest.fixture
def quick(monkeypatch):
    """Everything so small that nothing is learnt from it."""
    changes = {
        "WIDTH": 64,
        "FFN": 128,
        "HEADS": 2,
        "HEAD": 32,
        "ROWS": (1, 8),
        "SEQUENCES": 2,
        "CACHED": 16,
        "MATRICES": ((32, 64), (64, 128)),
        "IN_TURN_BYTES": 1 << 14,
        "NUM_LAYERS": 1,
        "NUM_PROMPTS": 1,
        "REPETITIONS": 2,
        "ENOUGH_S": 0.0,
        "FILE_BYTES": 4 * REQUEST_BYTES,
        "TOGETHER_S": 0.1,
        "STEP_TOKENS": 3,
        "STEP_SEQUENCES": 2,
    }
    for name, value in changes.items():
        named = [m for m in (computing, disk, engines, shapes, timing) if hasattr(m, name)]
        assert named, name
        for module in named:
            monkeypatch.setattr(module, name, value)


def test_a_profile_of_this_machine_is_written(quick, tmp_path, capsys):
    out = tmp_path / "hardware.json"
    arguments = ["--device", "cpu", "--dtype", "float32", "--out", str(out)]
    assert main(["calibrate", "--offload-dir", str(tmp_path / "there"), *arguments]) == 0
    hardware = read_hardware(out)
    assert hardware.unified
    assert hardware.dtype == "float32"
    assert hardware.source == "measured"
    assert hardware.host_to_device_bytes_per_s is None
    assert 0 <= hardware.contention <= 1
    assert hardware.conditions["threads"] == str(torch.get_num_threads())
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize("out", ["/proc/xx/p.json", "."])
def test_what_cannot_be_written_is_known_before_anything_is_measured(out, monkeypatch, capsys):
    monkeypatch.delattr(calibration, "_measure")
    assert main(["calibrate", "--out", out]) == 2
    error = capsys.readouterr().err
    assert f"{out} cannot be written (" in error
    assert error.endswith("): choose another --out\n")


def test_a_gpu_has_a_link(quick, cuda, tmp_path):
    hardware = calibration.calibrate(tmp_path, device="cuda", dtype="float32", rounds=1)
    assert not hardware.unified
    assert hardware.host_to_device_bytes_per_s > 0
    assert hardware.device_to_host_bytes_per_s > 0


def test_a_disk_that_cannot_be_used_is_named(quick, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StoreError, match="cannot be measured"):
        calibration.calibrate(file / "below", device="cpu", dtype="float32")


@pytest.mark.parametrize("method", ["allocate", "store", "fill"])
def test_a_disk_that_fails_has_no_rates(quick, tmp_path, monkeypatch, method):
    files = []

    def fail(file, *_):
        files.append(file)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(DirectFile, method, fail)
    with pytest.raises(StoreError, match="cannot be measured .*Input/output error"):
        calibration.calibrate(tmp_path, device="cpu", dtype="float32", rounds=1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(files[0]._file)  # it is closed, and takes no room on the disk


def test_rounds_end_when_there_is_no_time_for_another(quick, tmp_path, monkeypatch):
    rounds = []
    measure = calibration._measure
    monkeypatch.setattr(
        calibration, "_measure", lambda *given: rounds.append(None) or measure(*given)
    )
    monkeypatch.setattr(calibration, "LIMIT_S", 1e-3)
    calibration.calibrate(tmp_path, device="cpu", dtype="float32", rounds=3)
    assert len(rounds) == 1


def test_what_takes_long_is_measured_once(monkeypatch):
    monkeypatch.setattr(timing, "LONG_S", 3.0)
    seconds = iter([3.0, 1.0])
    assert timing.typical_s(lambda: next(seconds)) == 3.0


def test_the_median_of_what_is_measured_after_warming_up(monkeypatch):
    monkeypatch.setattr(timing, "REPETITIONS", 3)
    monkeypatch.setattr(timing, "ENOUGH_S", 7.0)
    seconds = iter([1.9, 1.0, 1.0, 1.5, 1.7, 1.8, 9.0])
    assert timing.typical_s(lambda: next(seconds)) == 1.5
