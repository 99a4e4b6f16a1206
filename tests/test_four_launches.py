"""Triton's steps: as exact as torch's in its interpreter, and small enough for the GPUs that they are compiled for."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import data, nets_of, settings

from flowstudy import ACTIVATIONS
from flowstudy.kinds import KINDS
from flowstudy.train import Checkpoint, train
from flowstudy.train.stacks.choice import CHOICE
from flowstudy.train.stacks.four_launches import there

HERE = Path(__file__).parent
EPS = np.finfo(np.float32).eps
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_steps = pytest.mark.skipif(not torch.cuda.is_available() or there.why_not(torch.device("cuda:0")) != "",
                                 reason="no GPU for Triton's steps")


def interpreted(cases: list) -> list:
    done = subprocess.run([sys.executable, HERE / "interpreted_steps.py", json.dumps(cases)], capture_output=True,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(cases: list) -> None:
    """Against float64, Triton's steps err by at most twice what torch's float32 steps do, and 8 ulp more.

    Both round each sum once or more; the order of terms differs, so the errors are two draws of one size, which is told
    by the largest of all weights' rather than each one's.
    """
    for case, found in zip(cases, interpreted(cases), strict=True):
        for part, (ours, theirs) in found.items():
            assert ours <= 2 * theirs + 8 * EPS, (case, part)


@needs_triton
def test_steps_are_as_exact_as_torchs():
    """One net of each kind, widths of one and of two tiles, batches of one and of two, activations mixed."""
    check([["highway", ["tanh", "relu"], 10, 7], ["plain", ["relu"], 71, 20], ["residual", ["gelu", "erf"], 17, 33]])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("width", [10, 50, 71, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_all_sizes_are_as_exact_as_torchs(kind, width):
    check([[kind, [name], width, batch] for name in ACTIVATIONS for batch in (7, 20, 100)])


@needs_triton
def test_a_net_that_diverged_leaves_its_neighbours_alone():
    """nan in a layer, or for one class alone, or infinity: the loss is finite where torch's is, and the neighbour's
    numbers are the same to the last bit."""
    places = [("blocks.1.affine.weight", math.nan), ("readout.bias", math.nan), ("input.affine.weight", math.inf)]
    found = interpreted([[kind, *place] for kind in KINDS for place in places])
    for one, other, torchs_one, torchs_other, same in found:
        assert one == torchs_one and other and torchs_other and same
    assert [one for one, *_ in found][:2] == [False, False]


# --- on a machine without a GPU --------------------------------------------------------------------------------------


def test_triton_that_cannot_be_had_is_refused_and_torch_does_the_work(monkeypatch):
    """What is asked for on a GPU counts there alone: a CPU has its own two."""
    state, reason = {"readout.weight": torch.zeros(1, 10, 50)}, "there is no GPU"
    monkeypatch.setattr(there, "why_not", lambda _device: reason)
    monkeypatch.delenv(CHOICE, raising=False)
    assert there.gpu_backend(state) == "cuda graph"
    monkeypatch.setenv(CHOICE, "triton")
    with pytest.raises(ValueError, match=r"^train: `FLOWSTUDY_BACKEND` must be torch .* got 'triton': there is no GPU"):
        there.gpu_backend(state)
    assert train(nets_of(range(2)), data(), settings([0.1, 0.1])).backend in ("compiled", "torch")
    reason = ""
    assert there.gpu_backend(state) == "triton"
    with pytest.raises(ValueError, match="the nets have 129 units or classes, more than 128"):
        there.gpu_backend({"readout.weight": torch.zeros(1, 10, 129)})
    monkeypatch.setenv(CHOICE, "torch")
    assert there.gpu_backend(state) == "cuda graph"


def test_a_run_of_a_gpu_starts_again_where_there_is_none(tmp_path):
    """With a word: its steps cannot be had here, and a run has one backend."""
    checkpoint = Checkpoint(tmp_path / "run", seconds=0.0)
    checkpoint.save({"backend": "triton"})
    whole = train(nets_of(range(2)), data(), settings([0.1, 0.1]))
    with pytest.warns(UserWarning, match=r"^train: the checkpoint was trained by triton steps, .* \(on cpu\): the run"):
        again = train(nets_of(range(2)), data(), settings([0.1, 0.1]), checkpoint=checkpoint)
    assert torch.equal(again.loss, whole.loss) and again.backend == whole.backend


# --- compiled for GPUs -----------------------------------------------------------------------------------------------

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a program can have, by compute capability
# Bytes a thread, by capability and width: what passes its 255 registers, and goes to memory (the first level of cache
# holds it).  None at 50 units on the H100; 128 units are the most that the kernels take.
SPILLED = {80: {50: 64, 71: 32, 128: 896}, 90: {50: 0, 71: 32, 128: 384}, 100: {50: 0, 71: 32, 128: 384}}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("kind, width", [("highway", 50), ("plain", 71), ("highway", 128)])
def test_kernels_fit_into_the_gpus_they_are_compiled_for(kind, width, capability):
    """Registers, what is spilled, and a program's memory are within the limits above."""
    done = subprocess.run([sys.executable, HERE / "compiled_kernels.py", kind, str(width), str(capability),
                           str(SHARED[capability])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (registers, spilled, shared) in json.loads(done.stdout).items():
        found = name, registers, spilled, shared
        assert registers <= 255 and spilled <= SPILLED[capability][width] and shared <= SHARED[capability], found


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_steps
def test_both_backends_of_a_gpu_train_alike(monkeypatch):
    """Losses to float32's rounding over a few tame epochs; each says which it is."""
    plan, found = settings([0.1, 0.2], batch_size=7), {}
    for asked, backend in (("triton", "triton"), ("torch", "cuda graph")):
        monkeypatch.setenv(CHOICE, asked)
        found[backend] = train(nets_of(range(2), device="cuda"), data(device="cuda"), plan)
        assert found[backend].backend == backend
    torch.testing.assert_close(found["triton"].loss, found["cuda graph"].loss, rtol=1e-4, atol=0)
