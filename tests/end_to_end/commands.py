"""Running installed commands as a user would, without any hint where to find data."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = Path(sys.executable).parent


def environment_in(directory):
    kept = {k: v for k, v in os.environ.items() if k not in ("NLTK_DATA", "HF_HOME")}
    return kept | {"HOME": str(directory)}


def run(directory, command, *arguments):
    """Run a command in a directory; return what it printed."""
    finished = subprocess.run(
        [COMMANDS / command, *arguments],
        cwd=directory,
        env=environment_in(directory),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished


def run_and_kill(directory, seconds, command, *arguments):
    """Kill a command, and all it has started, after so many seconds; return whether it ran on."""
    process = subprocess.Popen(
        [COMMANDS / command, *arguments],
        cwd=directory,
        env=environment_in(directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running
