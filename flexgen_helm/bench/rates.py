"""The process that measures the rates of this machine once, and prints them as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(request: str) -> None:
    """Measure a device, with the disk of a directory, that a request names."""
    from flexgen_helm.runtime.calibration import calibrate

    asked = json.loads(request)
    hardware = calibrate(Path(asked["directory"]), device=asked["device"], rounds=1)
    print(json.dumps(json.loads(hardware.to_json())))


if __name__ == "__main__":
    main(sys.argv[1])
