"""GradientMonitor: equal to a loop by hand, right in every way to make a step, harmless, and safe from SIGKILL."""

import contextlib
import copy
import errno
import io
import itertools
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CLASSES, FEATURES, assert_same, batch, build, fingerprint
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy import GradientMonitor, gradient_flow, plots
from flowstudy.measure.monitor.kept import RecordFolder, load_records
from flowstudy.measure.monitor.norms import Norms, norms, norms_of_rows
from flowstudy.measure.monitor.norms import norm as measured_norm
from flowstudy.measure.monitor.optimizers import STEPS
from flowstudy.measure.monitor.watched import QUANTITIES
from flowstudy.seal import MARK

GRADIENT, CLIPPED, UPDATE, ERROR, ACTIVATION = QUANTITIES
ROUNDING = 1e-10  # float64 against float64 in another order
CLIP = 0.05       # below every gradient's norm here
LOOPBACK = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))  # lo, on a Mac lo0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)
        self.twice = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for _ in range(2):
            h = h + torch.tanh(self.twice(h))
        return self.leave(h)


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 6, 2, padding=1), nn.BatchNorm2d(6),
                         nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(54, 8), nn.ReLU(inplace=True),
                         nn.Linear(8, CLASSES))


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.ELU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    net[2].requires_grad_(False)
    return net


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(FEATURES, 3, dim_feedforward=8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, FEATURES)), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                         nn.Flatten(), nn.Linear(FEATURES, CLASSES))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "highway": lambda: build("HighwayNet-tanh-L9"), "plain": lambda: build("PlainNet-relu-L2"), "conv": conv_net,
    "residual, shared, unused": Residual, "frozen, in-place": frozen, "transformer": transformer}


def model_of(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype)


def batches(number: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    return [(x.to(dtype), y) for x, y in (batch(seed=seed) for seed in range(number))]


# --- the same by hand ------------------------------------------------------------------------------------------------


def layers_by_hand(model: nn.Module) -> dict[str, nn.Module]:
    hidden = list(getattr(model, "hidden_layers", []))
    return {name: m for name, m in model.named_modules()
            if (m in hidden if hidden else m._parameters) and not name.endswith("out_proj")}


def weights_by_hand(layer: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in layer.named_parameters() if p.ndim > 1 or name.endswith("weight")]


class Taps:
    """A zero added to each layer's output: the loss's gradient with respect to it is the error signal there."""

    def __init__(self, layers: dict[str, nn.Module]):
        self.taps: list[tuple[str, Tensor]] = []
        self.outputs: list[tuple[str, Tensor]] = []
        self.handles = [layer.register_forward_hook(lambda _m, _i, out, name=name: self.tap(name, out))
                        for name, layer in layers.items()]

    def tap(self, name: str, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):
            return self.tap(name, output[0]), *output[1:]
        self.taps.append((name, torch.zeros_like(output, requires_grad=True)))
        self.outputs.append((name, output.detach().clone()))
        return output + self.taps[-1][1]


def step_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, passes: list) -> dict[str, dict[str, float]]:
    """One clipped step of several micro-batches: taps added to the outputs, autograd.grad, sums in float64 numpy."""
    layers, parameters = layers_by_hand(model), [p for p in model.parameters() if p.requires_grad]
    errors, activations = {name: [] for name in layers}, {name: [] for name in layers}
    total = [None] * len(parameters)
    for x, y in passes:
        taps = Taps(layers)
        loss = F.cross_entropy(model(x), y) / len(passes)
        for handle in taps.handles:
            handle.remove()
        found = torch.autograd.grad(loss, parameters + [t for _, t in taps.taps], allow_unused=True)
        total = [g if t is None else t if g is None else t + g for t, g in zip(total, found, strict=False)]
        for (name, _), error in zip(taps.taps, found[len(parameters):], strict=True):
            errors[name].append(error)
        for name, output in taps.outputs:
            activations[name].append(output)
    for p, g in zip(parameters, total, strict=True):
        p.grad = g
    gradient = {name: norm(p.grad for p in weights_by_hand(layer)) for name, layer in layers.items()}
    nn.utils.clip_grad_norm_(parameters, CLIP)
    clipped = {name: norm(p.grad for p in weights_by_hand(layer)) for name, layer in layers.items()}
    before = {name: [p.detach().clone() for p in weights_by_hand(layer)] for name, layer in layers.items()}
    optimizer.step()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    rows = {}
    for name, layer in layers.items():
        changes = [p.detach() - b for p, b in zip(weights_by_hand(layer), before[name], strict=True)]
        is_held = any(id(p) in held for p in weights_by_hand(layer))
        entries = sum(h.numel() for h in activations[name])
        rows[name] = {GRADIENT: log10(gradient[name]), CLIPPED: log10(clipped[name]),
                      UPDATE: norm(changes) / norm(before[name]) if is_held else math.nan,
                      ERROR: log10(norm(errors[name])),
                      ACTIVATION: norm(activations[name])**2 / entries if entries else math.nan}
    return rows


def norm(tensors) -> float:
    there = [t.detach().double().numpy().ravel() for t in tensors if t is not None]
    return math.sqrt(sum(float(t @ t) for t in there)) if there else math.nan


def log10(value: float) -> float:
    return -math.inf if value == 0 else math.log10(value)


def run(model: nn.Module, monitor: GradientMonitor, steps: list, optimizer: torch.optim.Optimizer) -> pd.DataFrame:
    """Steps as people write them."""
    with monitor:
        for passes in steps:
            optimizer.zero_grad()
            for x, y in passes:
                (F.cross_entropy(model(x), y) / len(passes)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
    return monitor.frame


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def assert_rows_equal(frame: pd.DataFrame, expected: list[dict], tolerance: float) -> None:
    for step, rows in enumerate(expected):
        found = frame[frame["step"] == step].set_index("module")
        assert found.index.tolist() == list(rows)
        for name in QUANTITIES:
            np.testing.assert_allclose(found[name].to_numpy(float), [row[name] for row in rows.values()],
                                       rtol=tolerance, atol=tolerance, err_msg=f"{name} of step {step}")


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_a_loop_by_hand(name, passes, device):
    """Every quantity of every layer and step: micro-batches, clipping, momentum; nan where by hand there is nothing."""
    data = batches(3 * passes)
    steps = [data[i * passes:(i + 1) * passes] for i in range(3)]
    model, twin = model_of(name).to(device), model_of(name)
    there = [[(x.to(device), y.to(device)) for x, y in step] for step in steps]
    frame = run(model, GradientMonitor(model), there, sgd(model))
    by_hand = sgd(twin)
    assert_rows_equal(frame, [step_by_hand(twin, by_hand, step) for step in steps], ROUNDING)
    assert frame["layer"].tolist() == 3 * list(range(1, len(layers_by_hand(twin)) + 1))


@pytest.mark.parametrize("name", ["plain", "conv"])
def test_float32_nets_are_summed_in_float64(name):
    """Against float64 sums of the same float32 numbers; 1e-5 is the bound of the shortcut on a CPU."""
    model, twin = model_of(name, torch.float32), model_of(name, torch.float32)
    steps = [batches(1, torch.float32)]
    frame = run(model, GradientMonitor(model), steps, sgd(model))
    assert_rows_equal(frame, [step_by_hand(twin, sgd(twin), steps[0])], 1e-5)


@pytest.mark.parametrize("name", ["highway", "conv", "transformer"])
def test_the_definitions_are_those_of_gradient_flow(name):
    """At step 0 of a float64 net the two agree."""
    model, (x, y) = model_of(name), batches(1)[0]
    flow = gradient_flow(model, x, y).frame.set_index("module")
    frame = run(model, GradientMonitor(model), [[(x, y)]], sgd(model)).set_index("module")
    for column in (GRADIENT, ERROR, ACTIVATION):
        np.testing.assert_allclose(frame[column], flow[column].reindex(frame.index), rtol=ROUNDING, err_msg=column)


@pytest.mark.parametrize("scale", [1.0, 2e-21, 1e-30, 1e20, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("shape", [(3,), (2, 5, 64, 64), (40_961,)])
def test_norms_of_any_size_and_scale_are_those_of_float64(shape, scale):
    """One tensor, alike ones, a stack, channels last: numpy's float64 sums, beyond the range of float32 squares too.

    1e-5 bounds the float32 sums of up to 2^14 entries, which are all alike in the worst case.
    """
    tensors = [scale * t for t in (torch.rand(shape) + 0.5, torch.full(shape, 0.3))]
    expected = [float(np.sqrt(np.square(t.double().numpy()).sum())) for t in tensors]
    for found in (norms(tensors), norms_of_rows(torch.stack(tensors)), [measured_norm(t) for t in tensors]):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    if len(shape) == 4:
        last = tensors[0].contiguous(memory_format=torch.channels_last)
        assert measured_norm(last) == pytest.approx(expected[0], rel=1e-6, nan_ok=True)


def test_numbers_that_are_there_are_not_waited_for():
    """To synchronise an event that has happened is a call that the host need not make; one that has not, it must."""
    for there in (True, False):
        found = Norms()
        found.put("kind", [0, 1], torch.tensor([1.0, 2.0], dtype=torch.float64))
        found.fetch()
        found.arrived = Mock(query=Mock(return_value=there))
        assert found.read().tolist() == [1.0, 2.0]
        assert found.arrived.synchronize.called != there


def test_gradients_too_small_for_float32_squares_are_not_zero():
    """Entries of 1e-30: their squares are 0 in float32, and so is vector_norm; -inf is what is exactly 0."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with GradientMonitor(model, quantities=[GRADIENT, ERROR]) as monitor:
        (model[0](torch.ones(1, 4)).sum() * 1e-30 + 0 * model[1](torch.ones(1, 4)).sum()).backward()
        sgd(model).step()
    assert monitor.frame[GRADIENT].tolist() == [pytest.approx(math.log10(4e-30), abs=1e-6), -math.inf]
    assert monitor.frame[ERROR].tolist() == [pytest.approx(math.log10(2e-30), abs=1e-6), -math.inf]


# --- ways to make a step ---------------------------------------------------------------------------------------------


def amp_run(optimizer: torch.optim.Optimizer, model: nn.Module, monitor: GradientMonitor, *, unscale: bool,
            steps: int = 3, poison: int | None = None) -> pd.DataFrame:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    monitor._scaler = scaler if monitor._scaler is not None else None
    with monitor:
        for step, (x, y) in enumerate(batches(steps, torch.float32)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss * math.inf if step == poison else loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            scaler.step(optimizer)
            scaler.update()
    return monitor.frame


OPTIMIZERS = {"foreach": lambda p: torch.optim.SGD(p, lr=0.01, foreach=True),
              "fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True)}


@pytest.mark.parametrize("given", [True, False], ids=["scaler given", "scaler found"])
@pytest.mark.parametrize("unscale", [True, False], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_norms_under_amp_are_those_of_float32(kind, unscale, given):
    """Not 2^12 larger, whoever unscales: GradScaler.step, the user, or the fused optimizer inside its kernel."""
    model, single = model_of("plain", torch.float32), model_of("plain", torch.float32)
    monitor = GradientMonitor(model, scaler=torch.amp.GradScaler("cpu") if given else None)
    frame = amp_run(OPTIMIZERS[kind](model.parameters()), model, monitor, unscale=unscale)
    with GradientMonitor(single) as reference:
        optimizer = OPTIMIZERS[kind](single.parameters())
        for x, y in batches(3, torch.float32):
            optimizer.zero_grad()
            F.cross_entropy(single(x), y).backward()
            if unscale:
                nn.utils.clip_grad_norm_(single.parameters(), CLIP)
            optimizer.step()
    assert frame["step"].tolist() == [0, 0, 1, 1, 2, 2]
    for column in (GRADIENT, CLIPPED, ERROR):
        np.testing.assert_allclose(10 ** (frame[column] - reference.frame[column]), 1, rtol=0, atol=1e-2,
                                   err_msg=column)
    for column in (UPDATE, ACTIVATION):
        np.testing.assert_allclose(frame[column], reference.frame[column], rtol=2e-2, err_msg=column)


@pytest.mark.parametrize("kind, steps", [("foreach", [0, 1]), ("fused", [0, 2])])
def test_a_step_that_the_scaler_leaves_out_is_not_recorded(kind, steps):
    """Nor do its infinite error signals reach the next record; a fused optimizer's own count goes on."""
    model = model_of("plain", torch.float32)
    frame = amp_run(OPTIMIZERS[kind](model.parameters()), model, GradientMonitor(model), unscale=False, poison=1)
    assert frame["step"].unique().tolist() == steps
    assert np.isfinite(frame[list(QUANTITIES)]).all(axis=None)


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapper given", "module given"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_are_seen(backend, wrapped):
    """Compiled before the monitor came, recorded as the plain model, module names as the user's; the stance is back."""
    model, plain = model_of("conv"), model_of("conv")
    compiled, steps = torch.compile(model, backend=backend), [[b] for b in batches(6)]
    compiled(steps[0][0][0])
    plain(steps[0][0][0])  # batch norm counts
    frame = run(compiled, GradientMonitor(compiled if wrapped else model, every=3), steps, sgd(model))
    expected = run(plain, GradientMonitor(plain, every=3), steps, sgd(plain))
    pd.testing.assert_frame_equal(frame, expected, rtol=1e-8)
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_two_optimizers_make_one_step_and_foreign_ones_none():
    """Each layer has its own optimizer's numbers; the record equals that of one optimizer for both."""
    model, twin = model_of("residual, shared, unused"), model_of("residual, shared, unused")
    halves = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.enter, nn.ModuleList([
        model.twice, model.leave, model.unused]))]
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    whole = torch.optim.SGD(twin.parameters(), lr=0.1)
    with GradientMonitor(model, every=2) as monitor, GradientMonitor(twin, every=2) as expected:
        for x, y in batches(5):
            for net, optimizers in ((model, [*halves, foreign]), (twin, [whole])):
                net.zero_grad()
                F.cross_entropy(net(x), y).backward()
                for optimizer in optimizers:
                    optimizer.step()
    assert monitor.frame["step"].unique().tolist() == [0, 2, 4]
    pd.testing.assert_frame_equal(monitor.frame, expected.frame, rtol=1e-12)


def test_the_chosen_optimizer_alone_counts():
    model, (x, y) = model_of("residual, shared, unused"), batches(1)[0]
    chosen, other = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.enter, model.leave))
    with GradientMonitor(model, optimizer=chosen) as monitor:
        for _ in range(2):
            F.cross_entropy(model(x), y).backward()
            other.step()
            chosen.step()
    frame = monitor.frame.set_index(["step", "module"])
    assert monitor.records == 2 and frame[UPDATE].notna().groupby("module").all()["enter"]
    assert frame[UPDATE].isna().groupby("module").all()["leave"]


def phases(model: nn.Module, begin: list[Callable[[], list[torch.optim.Optimizer]]], each: int = 3,
           **options: object) -> pd.DataFrame:
    """The record of a training whose phases have optimizers of their own, which step in turn."""
    data = iter(batches(each * len(begin)))
    with GradientMonitor(model, **options) as monitor:
        for make in begin:
            optimizers = make()
            for x, y in itertools.islice(data, each):
                model.zero_grad()
                F.cross_entropy(model(x), y).backward()
                for optimizer in optimizers:
                    optimizer.step()
    return monitor.frame


def test_an_optimizer_of_a_later_phase_loses_no_step():
    """Every step is one, and what its record says of it is what one optimizer's of all phases does."""
    def parts(model: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.enter, nn.ModuleList([
            model.twice, model.leave, model.unused]))]

    def whole(model: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(model.parameters(), lr=0.1)]

    def head(model: nn.Module) -> list[torch.optim.Optimizer]:
        model.enter.requires_grad_(False)
        model.twice.requires_grad_(False)
        return [torch.optim.SGD([*model.leave.parameters(), *model.unused.parameters()], lr=0.1)]

    name = "residual, shared, unused"
    twin = model_of(name)
    optimizer = whole(twin)
    expected = phases(twin, [lambda: optimizer] * 3)
    for makers in ((whole, whole, whole), (parts, parts, parts), (whole, parts, whole), (parts, whole, parts)):
        model = model_of(name)
        frame = phases(model, [lambda make=make, model=model: make(model) for make in makers])
        pd.testing.assert_frame_equal(frame, expected, rtol=1e-12)
    model = model_of(name)
    frame = phases(model, [lambda: whole(model), lambda: head(model)], every=2).set_index("module")[UPDATE]
    assert (~frame.isna()).groupby("module").sum().to_dict() == {"enter": 2, "twice": 2, "leave": 3, "unused": 3}


@pytest.mark.parametrize("quantities", [QUANTITIES, [GRADIENT, UPDATE], [UPDATE]])
def test_weights_that_are_replaced_are_followed(quantities):
    """load_state_dict(assign=True) puts other tensors into the model: the record is that of values copied in.

    Where no layer is hooked, the first gradient of a new weight comes before anybody sees it: nan, not an old one."""
    frames = []
    for assign in (False, True):
        model = model_of("plain")
        start = {name: value.clone() for name, value in model.state_dict().items()}

        def again(model=model, start=start, assign=assign) -> list[torch.optim.Optimizer]:
            if assign:
                model.load_state_dict({name: value.clone() for name, value in start.items()}, assign=True)
            else:
                model.load_state_dict(start)
            return [sgd(model)]

        frames.append(phases(model, [lambda model=model: [sgd(model)], again, again], quantities=quantities))
    copied, assigned = frames
    if quantities == [GRADIENT, UPDATE]:
        first = copied["step"].isin([3, 6])
        assert assigned.loc[first, GRADIENT].isna().all()
        copied.loc[first, GRADIENT] = math.nan
    pd.testing.assert_frame_equal(assigned, copied, check_exact=True)


def test_attaching_while_an_optimizer_steps_ends_no_step():
    """As a thread may at any moment: here another monitor comes and goes within the first one's step."""
    model, other = model_of("plain"), model_of("plain")

    class Attaches:
        def add_scalar(self, *_arguments: object) -> None:
            GradientMonitor(other).attach().detach()
            GradientMonitor(other).attach()

    step_by_step(GradientMonitor(model, writer=Attaches()), model, 4, {})
    for listener in STEPS.listeners:
        STEPS.tell_no_more(listener)


def test_a_closure_is_seen_from_inside():
    """LBFGS runs its backward passes within the step: the last one's gradient, and one pass's activations."""
    model, (x, y) = model_of("plain"), batches(1)[0]
    optimizer, seen = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        seen.append(norm(p.grad for p in weights_by_hand(model.hidden_layers[0])))
        return loss

    with GradientMonitor(model) as monitor:
        optimizer.step(closure)
    assert len(seen) > 1 and monitor.frame[GRADIENT][0] == pytest.approx(log10(seen[-1]), abs=ROUNDING)
    assert monitor.frame[UPDATE].gt(0).all()


def test_a_loop_without_an_optimizer_says_when_it_steps():
    """step() before the weights change gives what an optimizer's hooks give; beside an optimizer it changes nothing."""
    frames = []
    for by_hand, says_so in ((True, True), (False, True), (False, False)):
        model = model_of("conv")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with GradientMonitor(model, every=2) as monitor:
            for x, y in batches(4):
                model.zero_grad()
                F.cross_entropy(model(x), y).backward()
                if says_so:
                    monitor.step()
                if by_hand:
                    with torch.no_grad():
                        for p in model.parameters():
                            p -= 0.1 * p.grad
                else:
                    optimizer.step()
        frames.append(monitor.frame)
    for frame in frames[:2]:
        pd.testing.assert_frame_equal(frame, frames[2], rtol=1e-10)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_count_once(reentrant):
    """Recomputing a layer in the backward pass changes no number."""
    frames = []
    for saves_memory in (True, False):
        model, steps = model_of("conv"), batches(2)
        model[2].momentum = 0.0  # recomputing would update its statistics twice
        optimizer = sgd(model)
        with GradientMonitor(model) as monitor:
            for x, y in steps:
                x.requires_grad_()
                optimizer.zero_grad()
                h = (torch.utils.checkpoint.checkpoint(model[:5], x, use_reentrant=reentrant) if saves_memory
                     else model[:5](x))
                F.cross_entropy(model[5:](h), y).backward()
                optimizer.step()
        frames.append(monitor.frame)
    pd.testing.assert_frame_equal(*frames, rtol=1e-10)


def test_what_is_not_training_is_not_recorded():
    """An evaluation, a gradient penalty's autograd.grad, a backward pass that was thrown away."""
    model, twin, ((x, y), (other, _)) = model_of("plain"), model_of("plain"), batches(2)
    with GradientMonitor(model) as monitor:
        F.cross_entropy(model(100 * other), y).backward()
        model.zero_grad()
        with torch.no_grad():
            model(50 * other)
        h = (20 * other).requires_grad_()
        torch.autograd.grad(model(h).sum(), h)
        monitor._hooks.forward.clear()  # the forward pass of the penalty is one of the step
        F.cross_entropy(model(x), y).backward()
        sgd(model).step()
    with GradientMonitor(twin) as expected:
        F.cross_entropy(twin(x), y).backward()
        sgd(twin).step()
    pd.testing.assert_frame_equal(monitor.frame, expected.frame)


def test_a_diverged_net_is_data():
    model, (x, y) = model_of("plain"), batches(1)[0]
    frame = run(model, GradientMonitor(model), [[(x * math.nan, y)], [(x, y)]], sgd(model))
    assert frame[[GRADIENT, ERROR, UPDATE, ACTIVATION]].isna().all(axis=None) and len(frame) == 4


def test_sparse_gradients_are_measured():
    """Rows that repeat are added up first."""
    model = nn.Sequential(nn.Embedding(10, 3, sparse=True), nn.Flatten(), nn.Linear(6, CLASSES))
    with GradientMonitor(model) as monitor:
        model(torch.tensor([[1, 1], [1, 2]])).square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert monitor.frame[GRADIENT][0] == pytest.approx(log10(norm([model[0].weight.grad.to_dense()])), abs=1e-5)


DISTRIBUTED = """
    import faulthandler, sys, torch, torch.multiprocessing as mp
    from datetime import timedelta
    from pathlib import Path
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel
    sys.path.insert(0, {tests!r})

    def work(rank, root):
        from test_monitor import GradientMonitor, batches, model_of  # here: the parent needs none of it

        torch.set_num_threads(1)
        faulthandler.dump_traceback_later(150, exit=True)
        torch.distributed.init_process_group("gloo", init_method=f"file://{{root}}/meeting", rank=rank, world_size=2,
                                             timeout=timedelta(seconds=100))
        torch.distributed.all_reduce(torch.ones(1))
        Path(root, f"met_{{rank}}").touch()
        for view in ("view", "copy"):
            folder = f"{{root}}/{{view}}"
            model = DistributedDataParallel(model_of("plain"), gradient_as_bucket_view=view == "view")
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            data = [(x[rank::2][:4], y[rank::2][:4]) for x, y in batches(4)]
            with GradientMonitor(model, store=folder + "/store") as monitor:
                for micro in (data[:2], data[2:]):
                    optimizer.zero_grad()
                    with model.no_sync():
                        (F.cross_entropy(model(micro[0][0]), micro[0][1]) / 2).backward()
                    (F.cross_entropy(model(micro[1][0]), micro[1][1]) / 2).backward()
                    optimizer.step()
            monitor.frame.to_parquet(f"{{folder}}/{{rank}}.parquet")
        torch.distributed.destroy_process_group()

    if __name__ == "__main__":
        mp.spawn(work, args=(sys.argv[1],), nprocs=2)
"""


@pytest.fixture(scope="module")
def distributed(tmp_path_factory) -> Path:
    """The folders view and copy, each with what two processes recorded.

    gloo's processes do not always meet on a busy machine.  Only then, before anything is measured, they are started
    again; they meet on the loopback interface, so that the machine's name need not lead back to it.
    """
    for _ in range(3):
        root = tmp_path_factory.mktemp("distributed")
        for view in ("view", "copy"):
            (root / view).mkdir()
        script = root / "work.py"
        script.write_text(textwrap.dedent(DISTRIBUTED.format(tests=str(Path(__file__).parent))))
        done = subprocess.run([sys.executable, script, root], timeout=400, capture_output=True, text=True,
                              env=os.environ | {"GLOO_SOCKET_IFNAME": LOOPBACK})
        if done.returncode == 0:
            return root
        if (root / "met_0").exists() and (root / "met_1").exists():
            break
    raise AssertionError(done.stdout + done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["view", "copy"])
def test_distributed_processes_record_the_joint_batch(distributed, view):
    """Two processes with no_sync accumulation against one with both halves: the all-reduce is over when we measure.

    Each process's error signals are of its own loss, so theirs in quadrature, over 2, are the joint one's.
    """
    folder = distributed / view
    model = model_of("plain")
    data = [(x[:8], y[:8]) for x, y in batches(4)]
    with GradientMonitor(model) as monitor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for micro in (data[:2], data[2:]):
            optimizer.zero_grad()
            for x, y in micro:
                (F.cross_entropy(model(x), y) / 2).backward()
            optimizer.step()
    one, two = (pd.read_parquet(folder / f"{rank}.parquet") for rank in (0, 1))
    for column in ("step", "module", GRADIENT, CLIPPED, UPDATE):
        for process in (one, two):
            pd.testing.assert_series_equal(process[column], monitor.frame[column], rtol=1e-10)
    joint = 0.5 * np.log10(10 ** (2 * one[ERROR]) + 10 ** (2 * two[ERROR])) - math.log10(2)
    np.testing.assert_allclose(joint, monitor.frame[ERROR], rtol=1e-10)
    np.testing.assert_allclose((one[ACTIVATION] + two[ACTIVATION]) / 2, monitor.frame[ACTIVATION], rtol=1e-10)
    pd.testing.assert_frame_equal(GradientMonitor.load(folder / "store"), one)  # one process writes, not both


# --- harmless --------------------------------------------------------------------------------------------------------


def hooks_of(model: nn.Module) -> list:
    return [h for m in model.modules() for h in m._forward_hooks] + [
        p for p in model.parameters() if getattr(p, "_post_accumulate_grad_hooks", None)]


def test_the_model_is_as_it_was_and_training_goes_as_without():
    """To the bit; attaching and detaching twice is the same as once."""
    model, twin, steps = model_of("conv"), model_of("conv"), [[b] for b in batches(4)]
    before = fingerprint(model)
    monitor = GradientMonitor(model, every=2).attach().attach()
    monitor.detach()
    monitor.detach()
    assert_same(before, fingerprint(model))
    run(model, monitor, steps, sgd(model))
    run(twin, GradientMonitor(MODELS["plain"]()), steps, sgd(twin))
    assert_same(model.state_dict(), twin.state_dict())
    assert hooks_of(model) == [] and monitor.records == 2


@pytest.mark.parametrize("name, held, named", [("plain", slice(None), False), ("frozen, in-place", slice(None), False),
                                               ("plain", slice(2), True)])
def test_steps_that_are_not_recorded_have_no_hooks(name, held, named):
    """One optimizer with all that is to be trained, or the one that is named, is known to step alone."""
    model = model_of(name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad][held], lr=0.1)
    hooked = []
    with GradientMonitor(model, every=3, optimizer=optimizer if named else None) as monitor:
        for x, y in batches(8):
            optimizer.zero_grad()
            hooked.append(bool(hooks_of(model)))
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert monitor.frame["step"].unique().tolist() == [0, 3, 6]
    assert hooked == [True, False, False, True, False, False, True, False]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_quantity_by_itself_is_what_it_is_among_all(quantity):
    """Each is measured by hooks of its own; leaving the others out changes no number."""
    frames = []
    for quantities in (QUANTITIES, [quantity]):
        model = model_of("conv")
        optimizer = sgd(model)
        frames.append(run(model, GradientMonitor(model, quantities=quantities), [[b] for b in batches(3)], optimizer))
    pd.testing.assert_frame_equal(frames[0][frames[1].columns], frames[1], check_exact=True)


def test_freezing_and_thawing_in_mid_run_is_seen():
    """By the weights' hooks as by the layers': no number of an earlier step is left, no layer is missed."""
    frames = []
    for quantities in (QUANTITIES, [GRADIENT]):
        model = model_of("plain")
        model.hidden_layers[1].requires_grad_(False)
        with GradientMonitor(model, quantities=quantities) as monitor:
            optimizer = sgd(model)
            for x, y in batches(4):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                for layer in model.hidden_layers:
                    layer.requires_grad_(not layer.affine.weight.requires_grad)
        frames.append(monitor.frame)
    assert frames[0][GRADIENT].isna().tolist() == [False, True, True, False] * 2
    pd.testing.assert_frame_equal(frames[1], frames[0][frames[1].columns], check_exact=True)


def test_gradient_norms_alone_hook_no_layer():
    model = model_of("plain")
    with GradientMonitor(model, quantities=[GRADIENT, UPDATE]) as monitor:
        assert all(not m._forward_hooks for m in model.modules())
    assert monitor.frame.columns.tolist() == ["step", "layer", "module", "type", GRADIENT, UPDATE]


def test_copies_and_saved_models_are_not_watched():
    """An averaged copy made while recording, run or loaded again, adds nothing and holds no monitor."""
    model, (x, y) = model_of("conv"), batches(1)[0]
    with GradientMonitor(model) as monitor:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
            F.cross_entropy(other(7 * x), y).backward()
        run_once = F.cross_entropy(model(x), y)
        run_once.backward()
        sgd(model).step()
    twin = model_of("conv")
    with GradientMonitor(twin) as expected:
        F.cross_entropy(twin(x), y).backward()
        sgd(twin).step()
    pd.testing.assert_frame_equal(monitor.frame, expected.frame)


# --- where records go ------------------------------------------------------------------------------------------------

KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from test_monitor import GradientMonitor, F, batches, model_of, sgd
    model = model_of("plain")
    optimizer, data = sgd(model), batches(4)
    GradientMonitor(model, store=sys.argv[1]).attach()
    for step in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(data[step % 4][0]), data[step % 4][1]).backward()
        optimizer.step()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_run_keeps_every_record_but_the_last(tmp_path):
    """SIGKILL right after step 149, in a real process; pandas reads the folder as it is, in few files."""
    script, store = tmp_path / "work.py", tmp_path / "store"
    script.write_text(textwrap.dedent(KILLED.format(tests=str(Path(__file__).parent))))
    assert subprocess.run([sys.executable, script, store], timeout=600).returncode == -signal.SIGKILL
    model, data = model_of("plain"), batches(4)
    with GradientMonitor(model) as monitor:
        optimizer = sgd(model)
        for step in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(data[step % 4][0]), data[step % 4][1]).backward()
            optimizer.step()
    kept = GradientMonitor.load(store)
    assert kept["step"].max() >= 148 and len(list(store.iterdir())) == 3
    pd.testing.assert_frame_equal(kept, monitor.frame.iloc[:len(kept)])
    pd.testing.assert_frame_equal(pd.read_parquet(store), kept)


def test_a_record_that_cannot_be_written_leaves_those_before_it(tmp_path, monkeypatch):
    """The file that grows is written under another name first: a full disk costs the last record alone."""
    folder, rows = RecordFolder("test", tmp_path / "store"), pd.DataFrame({"step": [0, 0], "norm": [0.5, -math.inf]})
    folder.append(rows)
    with monkeypatch.context() as full:
        full.setattr("flowstudy.whole_file.os.fsync", Mock(side_effect=OSError(28, "no space")))
        with pytest.raises(OSError, match="no space"):
            folder.append(rows.assign(step=1))
    pd.testing.assert_frame_equal(load_records("test", tmp_path / "store"), rows)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["part-000000.parquet"]


def step_by_step(monitor: GradientMonitor, model: nn.Module, number: int, between: dict[int, Callable]) -> list[Tensor]:
    """A training under the monitor, with something done before some steps; the weights that it ends with."""
    optimizer, data = sgd(model), batches(number)
    with monitor:
        for step, (x, y) in enumerate(data):
            between.get(step, lambda: None)()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return [weight.detach().clone() for weight in model.parameters()]


class FailingWriter:
    def __init__(self, error: Exception):
        self.error, self.calls = error, 0

    def add_scalar(self, *_arguments: object) -> None:
        self.calls += 1
        raise self.error


def failing(error: OSError) -> Callable:
    def fail(*_arguments: object) -> None:
        raise error
    return fail


@pytest.mark.parametrize("error", [OSError(number, "as the system says") for number in (
    errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.EDQUOT)],
    ids=lambda error: error.errno)
@pytest.mark.parametrize("call", ["os.fsync", "Path.replace", "Path.open"])
@pytest.mark.parametrize("recovers", [True, False])
def test_a_disk_that_fails_never_ends_the_training(tmp_path, monkeypatch, error, call, recovers):
    """Whatever the error and wherever it comes: one warning, the weights and the frame of a training without a store.

    A disk that takes files again gets every record; one that does not keeps those from before.
    """
    plain = model_of("plain")
    monitor = GradientMonitor(plain)
    expected = step_by_step(monitor, plain, 8, {})
    model = model_of("plain")
    watched = GradientMonitor(model, store=tmp_path / "store")
    disk = monkeypatch.context()
    with disk as patched, pytest.warns(UserWarning, match="^GradientMonitor: `store` must take the records") as told:
        broken = {3: lambda: patched.setattr(f"flowstudy.whole_file.{call}", failing(error))}
        weights = step_by_step(watched, model, 8, broken | ({6: patched.undo} if recovers else {}))
    assert len(told) == 1
    assert all(map(torch.equal, weights, expected))
    pd.testing.assert_frame_equal(watched.frame, monitor.frame)
    kept = GradientMonitor.load(tmp_path / "store")
    assert recovers == (len(kept) == len(monitor.frame)) and kept["step"].max() >= 1
    pd.testing.assert_frame_equal(kept, monitor.frame.iloc[:len(kept)])
    assert not list((tmp_path / "store").glob(".*"))


def test_two_monitors_in_one_folder_do_not_mix(tmp_path):
    """The folder has all records of the one that was first to write; the other is told once, and its frame has all."""
    first, second = model_of("plain"), model_of("conv")
    monitors = [GradientMonitor(model, store=tmp_path / "store") for model in (first, second)]
    step_by_step(monitors[0], first, 70, {})
    with pytest.warns(UserWarning, match="got FileExistsError.*another monitor writes there") as told:
        step_by_step(monitors[1], second, 5, {})
    assert len(told) == 1 and monitors[1].records == 5
    pd.testing.assert_frame_equal(GradientMonitor.load(tmp_path / "store"), monitors[0].frame)
    with pytest.raises(ValueError, match="`store` must be a new or empty folder"):
        GradientMonitor(first, store=tmp_path / "store")


def test_a_damaged_part_leaves_the_others(tmp_path):
    """One bit anywhere, or half of it missing: that part is left out, said, and nothing in the folder changes."""
    model = model_of("plain")
    monitor = GradientMonitor(model, store=tmp_path / "store")
    step_by_step(monitor, model, 130, {})
    paths = sorted((tmp_path / "store").iterdir())
    assert len(paths) == 3
    whole, others = paths[1].read_bytes(), monitor.frame[~monitor.frame["step"].between(64, 127)]
    words = range(whole.index(MARK), whole.index(MARK) + len(MARK))  # without them the part is of an earlier version
    places = [place for place in range(0, len(whole), 331) if place not in words]
    for damaged in [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1:] for i in places] + [whole[:100], b"damage"]:
        paths[1].write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"GradientMonitor\.load: .*part-000001\.parquet is left out"):
            kept = GradientMonitor.load(tmp_path / "store")
        pd.testing.assert_frame_equal(kept, others.reset_index(drop=True))
        assert paths[1].read_bytes() == damaged and len(list((tmp_path / "store").iterdir())) == 3


def test_a_folder_is_read_while_it_is_written(tmp_path):
    """Each reading has whole records, from the first one on, though the part that grows is replaced all the time."""
    folder, done = RecordFolder("test", tmp_path / "store"), threading.Event()
    rows = pd.DataFrame({"step": [0] * 5, "norm": np.arange(5.0)})

    def write() -> None:
        for step in range(100):
            folder.append(rows.assign(step=step))
        done.set()

    folder.append(rows.assign(step=-1))
    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        steps = load_records("test", tmp_path / "store")["step"].to_numpy().reshape(-1, 5)
        assert (steps == np.arange(-1, len(steps) - 1)[:, None]).all()
    writer.join()
    assert len(load_records("test", tmp_path / "store")) == 101 * 5


def test_a_folder_that_is_gone_never_ends_the_training(tmp_path):
    """It is not made anew, which would hide that records are gone; the frame has all."""
    model, store = model_of("plain"), tmp_path / "store"
    monitor = GradientMonitor(model, store=store)
    with pytest.warns(UserWarning, match="`store` must take the records, got FileNotFoundError") as told:
        step_by_step(monitor, model, 6, {3: lambda: shutil.rmtree(store)})
    assert len(told) == 1 and not store.exists()
    assert monitor.frame["step"].drop_duplicates().tolist() == list(range(6))


@pytest.mark.parametrize("error", [OSError(28, "no space"), ValueError("closed"), RuntimeError("no connection"),
                                   KeyError("tag"), AttributeError("x")], ids=lambda error: type(error).__name__)
def test_a_writer_that_raises_never_ends_the_training(tmp_path, error):
    """It is told once and left alone; folder and frame have every record."""
    model, writer = model_of("plain"), FailingWriter(error)
    monitor = GradientMonitor(model, store=tmp_path / "store", writer=writer)
    with pytest.warns(UserWarning, match=f"`writer` must take the records, got {type(error).__name__}") as told:
        step_by_step(monitor, model, 6, {})
    assert len(told) == writer.calls == 1
    assert monitor.frame["step"].drop_duplicates().tolist() == list(range(6))
    pd.testing.assert_frame_equal(GradientMonitor.load(tmp_path / "store"), monitor.frame)


def test_a_folder_that_fails_is_tried_more_and_more_rarely(tmp_path, monkeypatch):
    """Of 200 records 8 are tried: after 1, 2, 4, ... of them; then all are there, and later ones go on in new parts."""
    folder = RecordFolder("test", tmp_path / "store")
    rows, tries = pd.DataFrame({"step": [0]}), Mock(side_effect=OSError(28, "no space"))
    with monkeypatch.context() as full:
        full.setattr("flowstudy.measure.monitor.kept.write_whole", tries)
        for step in range(200):
            with contextlib.suppress(OSError):
                folder.append(rows.assign(step=step))
    assert tries.call_count == 8
    folder.write()
    folder.append(rows.assign(step=200))
    assert load_records("test", tmp_path / "store")["step"].tolist() == list(range(201))
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_a_writer_gets_three_curves_per_quantity():
    class Writer:
        def __init__(self):
            self.curves = {}

        def add_scalar(self, tag, scalar_value, global_step):
            self.curves.setdefault(tag, []).append((global_step, scalar_value))

    model, writer = model_of("highway"), Writer()
    frame = run(model, GradientMonitor(model, every=2, writer=writer), [[b] for b in batches(3)], sgd(model))
    assert len(writer.curves) == 3 * len(QUANTITIES)
    for quantity in QUANTITIES:
        by_step = frame.groupby("step")[quantity]
        for name, values in {"first": by_step.first(), "median": by_step.median(), "last": by_step.last()}.items():
            assert writer.curves[f"{quantity}/{name} layer"] == list(values.items())


def test_a_long_run_of_a_deep_net_is_one_small_picture():
    """100 layers, 5000 records, every quantity; exact zeros and gaps among them; below 200 kB, a panel per quantity."""
    rng, layers, steps = np.random.default_rng(0), np.arange(1, 101), 10 * np.arange(5000)
    step, layer = (grid.ravel() for grid in np.meshgrid(steps, layers, indexing="ij"))
    batch_noise = rng.normal(0, 0.3, len(steps))[step // 10]  # in a real run, most of it is shared by the layers
    norms = rng.normal(-0.1 * (100 - layer) + step / 1e4 + batch_noise, 0.05)
    frame = pd.DataFrame({"step": step, "layer": layer, "module": "m", "type": "Linear"} | {
        name: norms if "log10" in name else 10**norms for name in QUANTITIES})
    frame.loc[frame["layer"] < 5, GRADIENT] = -math.inf
    frame.loc[frame["step"] > 40000, ERROR] = math.nan
    figure = plots.training_heat_map(frame)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110)
    assert len(picture.getvalue()) < 200_000
    assert [ax.get_title(loc="left") for ax in figure.axes][:5] == [t for t, _, _ in plots.TRAINING_PANELS.values()]


def test_a_monitor_draws_itself():
    model = model_of("highway")
    monitor = GradientMonitor(model, quantities=[GRADIENT, ACTIVATION])
    frame = run(model, monitor, [[b] for b in batches(3)], sgd(model))
    mesh = monitor.plot().axes[0].collections[0]
    expected = frame.pivot(index="layer", columns="step", values=GRADIENT).to_numpy()
    np.testing.assert_allclose(mesh.get_array(), expected, atol=np.ptp(expected) / 20)  # the ends are clipped


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, error, text", [
    ({"every": 0}, ValueError, r"`every` must be at least 1, got 0"),
    ({"every": 2.5}, TypeError, r"`every` must be a whole number of steps, got 2.5"),
    ({"quantities": ["log10_weight_gradient"]}, ValueError, r"Did you mean 'log10_weight_gradient_norm'\?"),
    ({"quantities": []}, ValueError, r"must name at least one, got none"),
    ({"quantities": ERROR}, TypeError, r"must be a list of names, got the string"),
    ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())}, ValueError, r"got one that holds none of them"),
    ({"optimizer": "sgd"}, TypeError, r"`optimizer` must be a torch.optim.Optimizer, got str"),
    ({"scaler": 2.0**16}, TypeError, r"`scaler` must be a torch.amp.GradScaler, got float"),
    ({"writer": "runs"}, TypeError, r"`writer` must have add_scalar"),
    ({"store": Path(__file__).parent}, ValueError, r"`store` must be a new or empty folder"),
    ({"store": 3}, TypeError, r"`store` must be the path of a folder, got int"),
    ({"model": "net"}, TypeError, r"`model` must be an nn.Module, got str"),
    ({"model": nn.ReLU()}, ValueError, r"`model` must have layers with weights, got ReLU"),
    ({"model": nn.Linear(2, 2).requires_grad_(False)}, ValueError, r"`model` must have trainable weights"),
])
@pytest.mark.usefixtures("annotations_unchecked")
def test_bad_arguments_are_refused_by_name(options, error, text):
    with pytest.raises(error, match=f"^GradientMonitor: .*{text}"):
        GradientMonitor(**({"model": nn.Linear(2, 2)} | options))


def test_calls_out_of_place_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"^GradientMonitor.step: the monitor must be attached"):
        GradientMonitor(nn.Linear(2, 2)).step()
    with pytest.raises(ValueError, match=r"^GradientMonitor.load: `folder` must hold records"):
        GradientMonitor.load(tmp_path)
