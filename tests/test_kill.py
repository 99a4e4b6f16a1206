"""A sweep that is killed at random moments and run again ends with the frame of one that was left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_three_kills_leave_no_trace():
    """SIGKILL at three random moments: each resumed frame is the same, bit for bit, and no half-written file is left.

    `python -m benchmarks.kill_sweep` does it thirty times."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kill_sweep", "--kills", "3", "--seed", "3"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same frame") == 3
    assert ", 0 of a sweep that was still running" not in done.stdout
