"""Planning in a process of its own: what solves linear programs would stay in memory, 100 MB of it.

An engine has to keep to a budget for hours, and plans twice.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence

from flexgen_helm.child import child_environment
from flexgen_helm.errors import PlanningError
from flexgen_helm.planner.plan import Plan, plan
from flexgen_helm.specs.budget import MemoryBudget
from flexgen_helm.specs.compression import Compression
from flexgen_helm.specs.hardware import Hardware
from flexgen_helm.specs.model import ModelSpec
from flexgen_helm.specs.workload import Workload


def plan_apart(
    spec: ModelSpec,
    compressions: Sequence[Compression],
    hardware: Hardware,
    workload: Workload,
    budget: MemoryBudget,
) -> Plan:
    """Do what `plan` does, and take no memory for longer.

    Raises:
        PlanningError: the process was ended, for want of memory most likely.
        Exception: what `plan` raises.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((spec, compressions, hardware, workload, budget)),
        stdout=subprocess.PIPE,
        env=child_environment(),
        check=False,
    )
    if done.returncode:
        raise PlanningError(
            f"the process that plans ended with status {done.returncode} (-9: killed, mostly for"
            " want of memory): free memory, or give a policy"
        )
    outcome = pickle.loads(done.stdout)
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, Plan), "that, or why there is none"
    return outcome


def main() -> None:
    """Plan what comes in."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a solver may print
    outcome: Plan | Exception
    try:
        outcome = plan(*pickle.load(sys.stdin.buffer))
    except Exception as error:
        outcome = error
    answers.buffer.write(pickle.dumps(outcome))


if __name__ == "__main__":
    main()
