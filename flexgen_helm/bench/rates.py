"""The rates of this machine, measured once by a process of its own, which prints them as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flexgen_helm.bench.trial import Bench, ask
from flexgen_helm.specs.hardware import Hardware


def measure_rates(bench: Bench, *, device: str, limit_s: float | None = None) -> Hardware:
    """Have a process measure a device, with the disk of a bench.

    Raises:
        CommandError: this failed, or took too long.
    """
    request = {"directory": str(bench.directory), "device": device}
    answer = ask(__name__, request, bench, name="rates", limit_s=limit_s)
    assert answer is not None, "nothing limits its memory"
    return Hardware.from_json(json.dumps(answer), where="what was measured")


def main(request: str) -> None:
    """Measure a device, with the disk of a directory, that a request names."""
    from flexgen_helm.runtime.calibration import calibrate

    asked = json.loads(request)
    hardware = calibrate(Path(asked["directory"]), device=asked["device"], rounds=1)
    print(json.dumps(json.loads(hardware.to_json())))


if __name__ == "__main__":
    main(sys.argv[1])
