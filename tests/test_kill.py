"""A sweep that is killed at random moments and run again ends with the frame of one that was left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.slow
@pytest.mark.parametrize("kills, processes", [(1, 1), (3, 1), (5, 2)])
def test_kills_leave_no_trace(kills, processes):
    """SIGKILL at random moments: each resumed frame is the same, bit for bit, and no half-written file is left.

    So for two processes that share a store; of a monitor beside them every record is kept but the last.

    `python -m benchmarks.kill_sweep --kills 100 --processes 2` does it a hundred times."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kill_sweep", "--kills", str(kills), "--seed", "2",
               "--processes", str(processes)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same frame") == kills
    assert ", 0 of a process that was still running" not in done.stdout
