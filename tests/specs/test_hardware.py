import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexgen_helm.errors import HardwareError
from flexgen_helm.specs.calibration import PROFILE_VARIABLE, measured_profile, profile_path
from flexgen_helm.specs.hardware import Curve, Hardware, middle, read_hardware
from flexgen_helm.specs.shipped import hardware_profiles
from tests.planner.machines import CPU, GPU

CURVE = Curve(((4.0, 8e9), (64.0, 32e9)))


@pytest.mark.parametrize(
    ("rows", "rate"), [(1, 2e9), (4, 8e9), (16, 16e9), (64, 32e9), (1000, 32e9)]
)
def test_a_rate_between_points_is_a_power(rows, rate):
    assert CURVE.at(rows) == pytest.approx(rate)


@given(st.floats(0.5, 1e4), st.floats(1, 4))
def test_more_rows_never_take_less_time(rows, factor):
    assert rows * factor / CURVE.at(rows * factor) >= rows / CURVE.at(rows) * (1 - 1e-9)


@pytest.mark.parametrize(
    "points", [(), ((1.0, 0.0),), ((2.0, 1.0), (1.0, 1.0)), ((1.0, float("nan")),)]
)
def test_a_curve_needs_growing_sizes(points):
    with pytest.raises(HardwareError, match="is no rate by size"):
        Curve(points)


@pytest.mark.parametrize(
    "hardware", [GPU, CPU, replace(CPU, packed_flop_per_s=CPU.product_flop_per_s)]
)
def test_a_profile_reads_back(hardware, tmp_path):
    path = tmp_path / "hardware.json"
    path.write_text(hardware.to_json())
    assert read_hardware(path) == hardware


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"disk_read_bytes_per_s": 0.0}, "disk_read_bytes_per_s=0.0 of hardware 'round'"),
        ({"device_bytes": -1}, "device_bytes=-1"),
        ({"contention": 1.5}, "contention=1.5 .* part of 1"),
        ({"step_s": float("inf")}, "step_s=inf"),
        ({"disk_read_bytes_per_s": "2 GB"}, "disk_read_bytes_per_s='2 GB' .* be a number"),
        ({"disk_bytes": None}, "disk_bytes=None .* be a number"),
        ({"step_s": True}, "step_s=True .* be a number"),
        ({"unified": "no"}, "unified='no' .* be true or false"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(HardwareError, match=message):
        replace(GPU, **changes)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"product_flop_per_s": [[1]]})])
def test_damaged_profiles_are_named(text, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(HardwareError, match="broken.json is no hardware profile"):
        read_hardware(path)


def test_a_missing_profile_is_named(tmp_path):
    with pytest.raises(HardwareError, match="none.json cannot be read"):
        read_hardware(tmp_path / "none.json")


def test_what_is_no_text_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(HardwareError, match="broken.json cannot be read .*can't decode"):
        read_hardware(path)


def test_profiles_that_ship():
    profiles = hardware_profiles()
    assert "t4" in profiles
    for name, path in profiles.items():
        hardware = read_hardware(path)
        assert hardware.name == name
        assert hardware.source
        assert hardware.unified == name.startswith("cpu")


def test_the_profile_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "mine.json"))
    with pytest.raises(HardwareError, match="has not been calibrated.*flexgen-helm calibrate"):
        measured_profile()
    profile_path().write_text(GPU.to_json())
    assert measured_profile() == GPU


def test_bytes_of_a_number():
    assert (GPU.dtype_bytes, replace(GPU, dtype="float32").dtype_bytes) == (2, 4)


def test_a_profile_is_a_frozen_value():
    assert Hardware.from_json(GPU.to_json(), where="here") == GPU


def test_a_slow_while_does_not_count():
    rounds = [
        replace(GPU, step_s=step_s, dequantized_weights_per_s=Curve(((1.0, rate),)))
        for step_s, rate in ((1.0, 5.0), (9.0, 7.0), (2.0, 1.0))
    ]
    found = middle(rounds)
    assert found.step_s == 2.0
    assert found.dequantized_weights_per_s == Curve(((1.0, 5.0),))
    assert found.product_flop_per_s == GPU.product_flop_per_s
    assert found.device_bytes == GPU.device_bytes
