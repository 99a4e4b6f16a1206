"""The compiled steps: as exact as torch's, every function within a few ulp, and no compiler is no error."""

import math
import re
import stat

import numpy as np
import pytest
import torch
from cases import CLASSES, FEATURES
from test_loop import data, nets_of, settings, weights_and_loss
from test_stacked_training import KINDS, nets
from torch import nn
from torch.testing import assert_close

from flowstudy import ACTIVATIONS, HighwayNet, PlainNet
from flowstudy.train import Checkpoint, loop, stack, train
from flowstudy.train.batches import batches, padded_size
from flowstudy.train.stacks import fully_connected, group
from flowstudy.train.stacks.compiled import compiler
from flowstudy.train.stacks.compiled.nets import ACTIVATIONS as COMPILED
from flowstudy.train.stacks.group import Group
from flowstudy.train.stacks.stacked_layers import PlainLayer

FLOAT = np.finfo(np.float32)
needs_compiler = pytest.mark.skipif(compiler.library()[0] is None, reason=f"no compiled steps: {compiler.library()[1]}")


# --- numbers ---------------------------------------------------------------------------------------------------------


def trained(kind: type[nn.Module], activation: str, width: int, batch: int, backend: str, dtype: torch.dtype) -> dict:
    """Weights, velocities and losses after an epoch of three nets, in float64."""
    many, samples = stack(nets(kind, activation, width, 4, 3, torch.float32)), data()
    if dtype == torch.float64:
        many = stack([many.net(i).double() for i in range(3)])
    one = Group(many, torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64), samples.x_train.to(dtype), samples.y_train,
                padded_size(batch), backend)
    one.set_rate(torch.tensor([0.005, 0.001, 0.002], dtype=torch.float64))
    one.run(batches(len(samples.x_train), batch, 0, 0))
    parts = {"weight": one.state(), "velocity": one.velocity(), "loss": {"": one.loss()}}
    return {f"{part} {name}": value.double() for part, own in parts.items() for name, value in own.items()}


def compare(kind: type[nn.Module], activation: str, width: int, batch: int) -> None:
    """Against float64, the compiled steps err by at most twice what torch's float32 steps do, and 8 ulp more.

    Both round each sum of up to `width` terms once or more; the order of terms differs, so the errors are two draws of
    one size, which is told by the largest of all weights' rather than each one's.
    """
    exact = trained(kind, activation, width, batch, "torch", torch.float64)
    ours, theirs = (trained(kind, activation, width, batch, backend, torch.float32) for backend in compiler.BACKENDS)
    for part in ("weight", "velocity", "loss"):
        wrong, allowed = (max(((found[name] - value).norm() / value.norm()).item()
                              for name, value in exact.items() if name.startswith(part)) for found in (ours, theirs))
        assert wrong <= 2 * allowed + 8 * FLOAT.eps, part


@needs_compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_as_exact_as_torchs(kind, activation):
    """A width of 13 and batches of 7 of 30 samples fit no vector, and the last batch is a rest."""
    compare(kind, activation, 13, 7)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 7, 20, 30])
@pytest.mark.parametrize("width", [10, 50, 71, 128])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_every_size_are_as_exact_as_torchs(kind, activation, width, batch):
    compare(kind, activation, width, batch)


def values(activation: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The compiled function and its derivative, where denormal numbers count as 0, as they do in training."""
    pre, h, slope = (torch.zeros(-(-len(x) // 8) * 8) for _ in range(3))
    pre[:len(x)] = torch.from_numpy(x)
    torch.set_flush_denormal(True)
    try:
        compiler.library()[0].activations(COMPILED.index(activation), pre.data_ptr(), h.data_ptr(), slope.data_ptr(),
                                          len(pre))
    finally:
        torch.set_flush_denormal(False)
    return h[:len(x)].double().numpy(), slope[:len(x)].double().numpy()


@needs_compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_functions_are_within_a_few_ulp(activation):
    """Of torch's in float64, at the float32 numbers from 1e-6 to 100 of both signs.

    h is within 4 ulp: the exponential, a sum and a quotient round once or twice each.  gelu's and the derivatives
    contain 1 - h, h (1 - h) or 1 + erf, which cancel: their error is 4 ulp of the larger term, 1.  What is below the
    smallest normal number counts as 0.  At a kink the derivative is torch's.  That of erf, 2 exp(-x^2) / sqrt(pi), has
    x^2 rounded, so its relative error is x^2 times as large, down to the smallest normal number.
    """
    x = np.geomspace(1e-6, 100, 20_000).astype(np.float32)
    x = np.concatenate([-x, [-1.0, 0.0, 1.0], x]).astype(np.float32)
    reference = torch.from_numpy(x).double().requires_grad_()
    h = ACTIVATIONS[activation](reference)
    h.sum().backward()
    ours, slope = values(activation, x)
    exact = h.detach().numpy()
    scale = np.abs(x) if activation == "gelu" else np.abs(exact)
    assert (np.abs(ours - exact) <= 4 * FLOAT.eps * scale + FLOAT.tiny).all()
    error = np.abs(slope - reference.grad.numpy())
    assert error.max() <= 4 * FLOAT.eps * max(1.0, np.abs(slope).max())
    if activation == "erf":
        assert (error <= (x.astype(float)**2 + 4) * FLOAT.eps * reference.grad.numpy() + 2 * FLOAT.tiny).all()


@needs_compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_is_what_torch_makes_of_it(activation):
    """nan stays nan, so that a net that diverged is known; infinity gives the function's limit."""
    x = np.array([math.nan, math.inf, -math.inf], dtype=np.float32)
    expected = ACTIVATIONS[activation](torch.from_numpy(x)).double().numpy()
    ours, _ = values(activation, x)
    if activation == "gelu":  # x P(x), of which torch makes nan at both
        expected = np.array([math.nan, math.inf, math.nan])
    np.testing.assert_array_equal(ours, expected)


@needs_compiler
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_wild_net_has_the_loss_that_torch_finds(activation, monkeypatch):
    """At a learning rate of 1e6 the loss is not finite, or as high, after the same epoch; neither backend hides it."""
    found = {}
    for backend in compiler.BACKENDS:
        monkeypatch.setenv(compiler.CHOICE, backend)
        history = train(nets_of(range(2), f"PlainNet-{activation}-L9"), data(), settings([0.05, 1e6], batch_size=7))
        assert history.backend == backend
        found[backend] = history
    assert torch.equal(found["compiled"].diverged, found["torch"].diverged)
    assert_close(found["compiled"].loss[0], found["torch"].loss[0], rtol=1e-5, atol=0)


@needs_compiler
@pytest.mark.parametrize("largest", range(CLASSES))
def test_a_logit_far_above_the_others_is_no_overflow(largest):
    """Whichever class it is of: exp(1000) is beyond float32.  Loss and step are those of float64, to a rounding each of
    the logits, 1000 and more, and of the sums that follow."""
    found = {}
    for dtype, backend in ((torch.float64, "torch"), (torch.float32, "compiled")):
        net, = nets(PlainNet, "tanh", 9, 3, 1, torch.float32)
        net.readout.bias.data[largest] = 1000.0
        samples = data()
        one = Group(stack([net.to(dtype)]), torch.zeros(1, dtype=torch.float64), samples.x_train.to(dtype),
                    samples.y_train, padded_size(7), backend)
        before = one.loss()
        one.set_rate(torch.tensor([0.01], dtype=torch.float64))
        one.run(batches(len(samples.x_train), 7, 0, 0))
        found[backend] = torch.stack([before, one.loss()])
    assert found["torch"].isfinite().all()
    assert_close(found["compiled"].double(), found["torch"].double(), rtol=8 * FLOAT.eps, atol=0)


# --- which backend ---------------------------------------------------------------------------------------------------


class Odd(PlainLayer):
    """A layer of another kind, which says nothing of compiled steps."""


def test_only_nets_that_the_compiled_steps_know_have_them(monkeypatch):
    """float32 nets of the kinds that say how their layers are made; a kind's layer by inheritance does not."""
    monkeypatch.setattr(compiler, "library", lambda: (object(), ""))
    monkeypatch.delenv(compiler.CHOICE, raising=False)

    def backend(net: nn.Module, dtype: torch.dtype = torch.float32) -> str:
        return group.backend_of(stack([net.to(dtype)]), data(dtype).x_train)

    made = [kind(FEATURES, 5, 3, CLASSES) for kind in KINDS]
    assert [backend(net) for net in made] == ["compiled"] * 3
    assert backend(made[0], torch.float64) == "torch"
    assert backend(nn.Linear(FEATURES, CLASSES)) == "torch"
    monkeypatch.setitem(fully_connected.LAYERS, type(made[0].blocks[0]), Odd)
    assert backend(PlainNet(FEATURES, 5, 3, CLASSES)) == "torch"
    monkeypatch.setenv(compiler.CHOICE, "torch")
    assert backend(HighwayNet(FEATURES, 5, 3, CLASSES)) == "torch"


@pytest.fixture
def anew(monkeypatch):
    """The library is looked for again, in this test and after it."""
    compiler.library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    compiler.library.cache_clear()


def test_without_a_compiler_torch_does_the_work(anew, tmp_path):
    anew.setenv("PATH", str(tmp_path))
    anew.delenv("CC", raising=False)
    anew.delenv(compiler.CHOICE, raising=False)
    assert compiler.chosen_backend() == "torch"
    history = train(nets_of(range(2)), data(), settings([0.1, 0.1]))
    assert history.backend == "torch" and history.loss[:, -1].isfinite().all()
    anew.setenv(compiler.CHOICE, "compiled")
    with pytest.raises(ValueError, match=r"^train: `FLOWSTUDY_BACKEND` must be torch where no C compiler works, got "
                                         r"'compiled': none of cc, gcc, clang is on the path\. Install one"):
        train(nets_of(range(2)), data(), settings([0.1, 0.1]))


@pytest.mark.parametrize("says", ["echo 'error: no such thing' >&2; exit 1", "exit 0"])
def test_a_compiler_that_fails_is_named(anew, tmp_path, says):
    """One that ends in an error, and one that ends well and writes nothing."""
    (tmp_path / "bad").write_text(f"#!/bin/sh\n{says}\n")
    (tmp_path / "bad").chmod(0o755)
    anew.setenv("CC", str(tmp_path / "bad"))
    anew.setenv("FLOWSTUDY_CACHE", str(tmp_path / "cache"))
    anew.delenv(compiler.CHOICE, raising=False)
    assert compiler.chosen_backend() == "torch"
    assert compiler.library()[1].startswith(f"{tmp_path / 'bad'} failed: ")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_backend_that_cannot_be_is_refused(monkeypatch):
    monkeypatch.setenv(compiler.CHOICE, "fortran")
    with pytest.raises(ValueError, match=r"^train: `FLOWSTUDY_BACKEND` must be one of compiled, .*, got 'fortran'"):
        train(nets_of(range(2)), data(), settings([0.1, 0.1]))


@needs_compiler
def test_the_library_is_compiled_once_and_is_ours_alone(anew, tmp_path):
    """Kept in a folder that nobody else may enter; one that others may change is not loaded, nor left to be."""
    anew.setenv("FLOWSTUDY_CACHE", str(tmp_path))
    assert compiler.library()[0] is not None
    kept, = (tmp_path / "compiled").glob("*")
    assert not stat.S_IMODE(kept.parent.stat().st_mode) & 0o077
    made, compiled = [], compiler.compile_into
    anew.setattr(compiler, "compile_into", lambda *args: (made.append(args), compiled(*args))[1])
    for times, mode in ((0, 0o755), (1, 0o777)):
        kept.chmod(mode)
        compiler.library.cache_clear()
        assert compiler.library()[0] is not None and len(made) == times
    damaged = tmp_path / "other" / "compiled" / kept.name  # elsewhere: a process that has a path's library keeps it
    damaged.parent.mkdir(parents=True, mode=0o700)
    damaged.write_bytes(b"no library")
    anew.setenv("FLOWSTUDY_CACHE", str(tmp_path / "other"))
    compiler.library.cache_clear()
    assert compiler.library()[0] is not None and len(made) == 2 and not damaged.exists()


@needs_compiler
def test_a_folder_that_takes_no_files_is_no_error(anew, tmp_path):
    """Compiled for this process alone, which is said."""
    (tmp_path / "file").touch()
    anew.setenv("FLOWSTUDY_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept in .*every process compiles its own"):
        assert compiler.library()[0] is not None


# --- a run that goes on ----------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@needs_compiler
@pytest.mark.parametrize("first, then", [("torch", "compiled"), ("compiled", "torch")])
def test_a_run_goes_on_with_the_backend_it_began_with(first, then, tmp_path, monkeypatch):
    """Whatever would be taken now; a compiled run where nothing is compiled starts again, and says so."""
    monkeypatch.setattr(loop, "SEGMENT", 0.0)
    monkeypatch.setattr(loop.Run, "first_segment", 1)

    def run(kept: Checkpoint | None) -> loop.History:
        return train(nets_of(range(2)), data(), settings([0.1, 0.05], batch_size=7), checkpoint=kept)

    def dying(kept: Checkpoint, state: dict) -> None:
        save(kept, state)
        raise Killed

    wholes = {}
    for backend in (then, first):
        monkeypatch.setenv(compiler.CHOICE, backend)
        wholes[backend] = run(None)
    save = Checkpoint.save
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Checkpoint, "save", dying)
        run(Checkpoint(tmp_path / "run.pt", seconds=0.0))
    monkeypatch.setenv(compiler.CHOICE, then)
    resumed = run(Checkpoint(tmp_path / "run.pt", seconds=1e9))
    assert resumed.backend == first
    for i in range(2):
        assert_close(weights_and_loss(resumed, i), weights_and_loss(wholes[first], i), rtol=0, atol=0)
    if first == "compiled":
        monkeypatch.setattr(loop, "library", lambda: (None, "there is none"))
        with pytest.warns(UserWarning, match=re.escape("which this machine has not (there is none): the run starts")):
            anew = run(Checkpoint(tmp_path / "run.pt", seconds=1e9))
        assert anew.backend == "torch" and torch.equal(anew.loss, wholes["torch"].loss)
