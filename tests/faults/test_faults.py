"""A disk that fails at any call loses nothing and ends no training; a flipped bit is found; each in short.

`python tests/faults/walk.py sweep` walks through every call, `python tests/faults/flip.py` flips 2,000 bits.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from injector import OPERATIONS, can_build, under_injector

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NEVER = {"mmap"}  # nothing maps a file: if something begins to, this line must go


@pytest.mark.slow
@pytest.mark.skipif(not can_build(), reason="no C compiler to build tests/faults/injector.c with, or not Linux")
@pytest.mark.parametrize("work, every", [("sweep", 23), ("resume", 23), ("monitor", 7), ("figures", 7)])
def test_a_failing_disk_loses_nothing(work, every):
    """One of every so many calls fails, alone or with all after it; then the disk is well, and all is as it would be.

    No row is lost or there twice, no healthy file set aside, no training ended, no picture gone.  The numbers are
    primes, so that each operation fails in each of its ways.
    """
    done = under_injector([sys.executable, str(HERE / "walk.py"), work, "--every", str(every)], cwd=ROOT, timeout=1800)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["wrong"] == []
    assert set(answer["failed"]) | NEVER == set(OPERATIONS)


@pytest.mark.slow
def test_a_flipped_bit_is_said_or_harmless():
    """In any file of a store: tables, plans, failures, checkpoints, convolutional results, a monitor's parts."""
    done = subprocess.run([sys.executable, str(HERE / "flip.py"), "--flips", "100"], cwd=ROOT, capture_output=True,
                          text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["wrong"] == []
    found = {kind.partition(":")[0] for kind in answer["counts"] if kind.endswith("found")}
    assert found == {"checkpoints", "conv_nets", "monitor", "plans", "training_loss"}
