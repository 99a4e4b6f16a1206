"""On a GPU everything is as on the CPU, and nothing waits that need not: training, sweeps, spectra, the monitor.

`pytest -m gpu` runs these, and the `cuda` cases of the other files, where there is a GPU; `make test-cuda-emulated`
runs them on emulated devices, which also count what the host waits for.
"""

import functools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from cases import CLASSES, FEATURES, batch, build
from test_loop import data, nets_of, settings
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from flowstudy import (
    ACTIVATIONS,
    Dataset,
    GradientMonitor,
    HighwayNet,
    PlainNet,
    ResidualNet,
    gradient_flow,
    initialize,
    mnist_conv_net,
)
from flowstudy.cuda_capture import capture_stream
from flowstudy.measure.numerics.products.graded_jacobi import graded_singular_values
from flowstudy.sweep import engine, grid, run
from flowstudy.sweep.looks import in_training
from flowstudy.sweep.looks.table import AS_THEY_START, MEASUREMENTS
from flowstudy.sweep.store.failures import SweepError
from flowstudy.sweep.store.files import StoreError
from flowstudy.sweep.workers import side_by_side, tasks
from flowstudy.train import History, Stack, stack, stack_states, train
from flowstudy.train.batches import batches
from flowstudy.train.convolutional.recipe import MNIST_RECIPE, train_conv
from flowstudy.train.stacks import fully_connected
from flowstudy.train.stacks.cuda_graph import GraphedSteps
from flowstudy.train.stacks.fully_connected import StackedFullyConnected

pytestmark = pytest.mark.gpu
FLOAT32 = 1e-4  # relative: float32's rounding over a few tame epochs


def mixed(kind: type[nn.Module], names: list[str], device: str = "cpu") -> Stack:
    made = [initialize(kind(FEATURES, 13, 4, CLASSES, name), "glorot_normal", seed=i) for i, name in enumerate(names)]
    whole = stack_states(made[0], [dict(net.named_parameters()) for net in made], device)
    return Stack(whole.template, whole.state, tuple(names))


def assert_same_training(there: History, here: History, tolerance: float = FLOAT32) -> None:
    assert there.diverged.tolist() == here.diverged.tolist()
    assert_close(there.loss.cpu(), here.loss, rtol=tolerance, atol=0, equal_nan=True)


@pytest.fixture
def happened() -> Iterator[object]:
    """What the emulated devices count."""
    from emulated_cuda import LOG

    LOG.clear()
    yield LOG


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PlainNet, HighwayNet, ResidualNet])
def test_nets_of_all_activations_train_in_one_stack_as_on_the_cpu(kind):
    """Whole replays of the graph and the rest of an epoch, losses and a divergence: the CPU's.  The settings may be
    anywhere."""
    names = sorted(ACTIVATIONS) * 2
    rates = [0.1, 0.05] * len(ACTIVATIONS)
    rates[names.index("linear")] = 1e6
    plan = settings(rates, [0.5] * len(names), batch_size=3, epochs=2)  # ten steps an epoch
    here, there = (train(mixed(kind, names, device), data(device=device), plan) for device in ("cpu", "cuda"))
    assert (here.diverged >= 0).sum() == 1
    assert_same_training(there, here)


def test_any_module_trains_as_on_the_cpu():
    """By automatic differentiation in the graph; convolutions in float32, whatever the process allows."""
    def conv_net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(),
                             nn.Linear(4 * FEATURES, CLASSES))

    plan = settings([0.1, 0.2, 1e6], batch_size=7)
    made = [conv_net(seed) for seed in range(3)]
    here, there = (train(stack(made, device), data(device=device), plan) for device in ("cpu", "cuda"))
    assert_same_training(there, here)


def test_tf32_is_asked_for_and_given_back():
    """Losses to tf32's ten bits, to which torch rounds and Triton cuts; afterwards torch's switches stand as before."""
    plan = settings([0.1, 0.2], batch_size=7)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        exact, coarse = (train(nets_of(range(2), device="cuda"), data(device="cuda"),
                               settings([0.1, 0.2], batch_size=7, precision=precision))
                         for precision in ("float32", "tf32"))
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    here = train(nets_of(range(2)), data(), plan)
    assert_same_training(exact, here)
    assert_same_training(coarse, here, 0.04)


def test_data_on_another_device_than_the_nets_is_refused():
    (x, y), net = batch(), build("PlainNet-relu-L2").cuda()
    with pytest.raises(ValueError, match=r"^gradient_flow: `y` must be on the model's device cuda:0, got cpu"):
        gradient_flow(net, x.cuda(), y)
    images = Dataset("made up", torch.rand(3, 1, 28, 28), y[:3], torch.rand(1, 1, 28, 28), y[:1], 10)
    with pytest.raises(ValueError, match=r"^train_conv: `data` must be on the net's device cuda:0, got cpu"):
        train_conv(mnist_conv_net(4).cuda(), images, MNIST_RECIPE)
    for nets, samples in (("cuda", "cpu"), ("cpu", "cuda")):
        with pytest.raises(ValueError, match=rf"^train: `data` must be on the nets' device {nets}.*, got {samples}.*"):
            train(nets_of(range(2), device=nets), data(device=samples), settings([0.1, 0.1]))


def test_an_evaluation_is_few_calls(monkeypatch):
    """As many samples together as memory has room for, and the CPU's loss; too little room makes more batches of it."""
    nets, samples = nets_of(range(3), device="cuda"), data(device="cuda")
    there = StackedFullyConnected(nets.template, nets.state, torch.zeros(3), samples.x_train, samples.y_train, 8)
    assert there.evaluation_batch() > fully_connected.EVALUATION_BATCH
    few = there.loss()
    monkeypatch.setattr(fully_connected, "EVALUATION_BATCH", 7)
    monkeypatch.setattr(fully_connected, "EVALUATION_BYTES", 0)
    assert there.evaluation_batch() == 7
    assert_close(there.loss(), few, rtol=1e-6, atol=0)
    here = train(nets_of(range(3)), data(), settings([0.1] * 3, epochs=0)).loss[:, 0]
    assert_close(few.cpu(), here, rtol=1e-6, atol=0)


@pytest.mark.two_gpus
def test_a_device_that_is_not_the_current_one_trains_as_the_first(tmp_path):
    """Its graphs are captured on it, and the current device stays what it was."""
    plan = settings([0.1, 0.05], batch_size=3)
    first, second = (train(nets_of(range(2), device=device), data(device=device), plan)
                     for device in ("cuda:0", "cuda:1"))
    assert {value.device.index for value in second.stack.state.values()} == {1}
    assert torch.cuda.current_device() == 0
    assert_same_training(second, first)


@pytest.mark.two_gpus
@pytest.mark.slow
def test_a_process_for_each_gpu_runs_a_sweep_as_one_does(tmp_path):
    cells = grid(net="highway", depth=3, width=5, seed=range(4), epochs=1, train_samples=40, batch_size=16)
    both = run(cells, device="cuda", nets_at_once=2, store=tmp_path / "both", progress=False)
    one = run(cells, device="cuda:0", nets_at_once=2, store=tmp_path / "one", progress=False)
    pd.testing.assert_frame_equal(both, one, rtol=FLOAT32)
    workers = {footer["provenance"]["worker"] for footer in engine.Store(tmp_path / "both").footers(
        next((tmp_path / "both").glob("training_loss-*")).name)}
    assert len(workers) == 2


@pytest.mark.emulated
def test_a_capture_that_raises_leaves_no_stream_current():
    """torch's own context of a graph leaves its stream current where the end of the capture raises as well."""
    nets, samples = nets_of(range(2), device="cuda"), data(device="cuda")
    chunk = StackedFullyConnected(nets.template, nets.state, torch.zeros(2), samples.x_train, samples.y_train, 4)
    step, stream = chunk.step, torch.cuda.current_stream()

    def step_and_look(index: torch.Tensor, weight: torch.Tensor) -> None:
        step(index, weight)
        if torch.cuda.is_current_stream_capturing():
            weight.sum().item()

    chunk.step = step_and_look
    with pytest.raises(RuntimeError, match="capture"):
        GraphedSteps(chunk).run(batches(len(samples.x_train), 3, 0, 0))
    assert torch.cuda.current_stream() is stream
    chunk.step = step
    GraphedSteps(chunk).run(batches(len(samples.x_train), 3, 0, 0))


@pytest.mark.emulated
def test_steps_do_not_wait(happened):
    """Nothing of an epoch's steps brings a number to the host; two replays of eight steps and two of one."""
    nets, samples = nets_of(range(2), device="cuda"), data(device="cuda")
    chunk = StackedFullyConnected(nets.template, nets.state, torch.zeros(2), samples.x_train, samples.y_train, 4)
    graphed = GraphedSteps(chunk)
    plan = batches(len(samples.x_train), 3, 0, 0)
    graphed.run(plan)
    happened.clear()
    graphed.run(plan)
    assert not happened.waits
    assert happened.kernels["graph replay"] == 1 + 2


# --- sweeps ----------------------------------------------------------------------------------------------------------


def compared(frame: pd.DataFrame, other: pd.DataFrame, rtol: float, atol: float) -> None:
    assert list(frame) == list(other)
    for name in frame:
        if frame[name].dtype.kind == "f":
            np.testing.assert_allclose(frame[name], other[name], rtol=rtol, atol=atol, err_msg=name)
        else:
            assert frame[name].equals(other[name]), name


@pytest.mark.parametrize("measure", MEASUREMENTS)
def test_every_measurement_is_the_cpus(measure, tmp_path):
    """Of nets as they start, two activations: float64 to 1e-7, what is float32 itself to its rounding."""
    cells = grid(net="highway", activation=["relu", "tanh"], depth=4, width=7, seed=range(2), train_samples=100)
    call = functools.partial(run, cells, measure=measure, progress=False)
    here, there = (call(device=device, store=tmp_path / device[:4]) for device in ("cpu", "cuda:0"))
    compared(there, here, 1e-4, 1e-4) if measure == "spectrum_by_route" else compared(there, here, 2e-5, 1e-6)


def test_measurements_in_training_are_the_cpus(tmp_path):
    """All of one training, in which a net diverges: that of the other nets, to float32's rounding grown over it."""
    refuses_nan = "spectrum_by_route"  # torch's svdvals
    measures = [name for name in MEASUREMENTS if name not in AS_THEY_START and name != refuses_nan]
    cells = grid(net="highway", activation=["relu", "linear"], depth=4, width=7, seed=0, train_samples=100,
                 batch_size=9, epochs=2, learning_rate=[0.05, 1e7])
    call = functools.partial(run, cells, measure=measures, at={"epochs": [0, -1]}, progress=False)
    here, there = (call(device=device, store=tmp_path / device[:4]) for device in ("cpu", "cuda:0"))
    assert (here["training_loss"]["diverged"] >= 0).any()
    tame = {cell.key for cell in cells if cell.learning_rate < 1}
    for name in measures:
        own, other = (frame[name][frame[name]["cell"].isin(tame)].reset_index(drop=True) for frame in (there, here))
        compared(own, other, 5e-3, 5e-3)


def test_groups_train_side_by_side_to_the_cpus_numbers(monkeypatch, tmp_path):
    """Three depths of two kinds, one with a net that diverges: in threads, each on a stream of its own."""
    cells = grid(net=["plain", "highway"], activation="linear", depth=[2, 3, 5], width=7, seed=range(2),
                 train_samples=60, batch_size=9, epochs=2, learning_rate=[0.05, 1e7])
    streams, whole = [], side_by_side.run_task

    def look(*of_task: object) -> list:
        streams.append(torch.cuda.current_stream())
        return whole(*of_task)

    monkeypatch.setattr(side_by_side, "run_task", look)
    here, there = (run(cells, device=device, store=tmp_path / device[:4], progress=False)
                   for device in ("cpu", "cuda:0"))
    assert len(streams) == 6 and torch.cuda.default_stream() not in streams and len(set(streams)) > 1
    assert (here["diverged"] >= 0).any() and there["diverged"].equals(here["diverged"])
    np.testing.assert_allclose(there["loss"], here["loss"], rtol=FLOAT32)


@pytest.mark.parametrize("options", [{"precision": "tf32"}, {"at": {"epochs": [1]}}])
def test_what_the_process_has_once_is_not_shared(options, monkeypatch, tmp_path):
    """Nets in tf32 train one group after the other; measurements in training of several groups do not meet."""
    inside, most, look = [], [], in_training.CellsMoment.part

    def part(*of_moment: object) -> object:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return look(*of_moment)

    threads, whole = set(), tasks.measure_together

    def measured(*of_task: object) -> object:
        threads.add(threading.get_ident())
        return whole(*of_task)

    monkeypatch.setattr(in_training.CellsMoment, "part", part)
    monkeypatch.setattr(tasks, "measure_together", measured)
    cells = grid(net="highway", depth=[2, 3, 4], width=5, seed=0, train_samples=40, batch_size=9, epochs=2)
    run(cells, measure="accuracy", device="cuda:0", store=tmp_path, progress=False, **options)
    assert max(most) == 1 and (len(threads) > 1) == ("at" in options)


def test_no_task_gets_the_stream_of_captures():
    """torch hands out 32 streams of ordinary priority in turns."""
    device = torch.device("cuda:0")
    assert all(torch.cuda.Stream(device) != capture_stream(device) for _ in range(65))


def test_what_lacked_memory_beside_others_is_tried_alone(monkeypatch, tmp_path):
    """Three of four nets at once fill the device; one fills more than there is, and fails."""
    used, one, whole = [], threading.Lock(), tasks.measure_together

    def measured(wanted: object, cells: list, *others: object) -> object:
        own = 30 if cells[0].depth < 6 else 101
        with one:
            if sum(used) + own > 100:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            used.append(own)
        try:
            time.sleep(0.2)
            return whole(wanted, cells, *others)
        finally:
            used.remove(own)

    monkeypatch.setattr(tasks, "measure_together", measured)
    cells = grid(net="plain", depth=[2, 3, 4, 5, 6], width=5, seed=0, train_samples=40, batch_size=9, epochs=1)
    with pytest.raises(SweepError, match="1 of 5 cells failed") as caught:
        run(cells, device="cuda:0", store=tmp_path, progress=False)
    assert [failure.cell["depth"] for failure in caught.value.failures] == [6]
    assert sorted(set(caught.value.rows["depth"])) == [2, 3, 4, 5]


def test_an_error_of_the_store_ends_the_groups_beside_it(monkeypatch, tmp_path):
    """At their next tick; what waits does not begin."""
    begun, ended = [], []

    def work(task: object, tick: object, *_: object) -> list:
        begun.append(task)
        if len(begun) == 2:
            raise StoreError("the disk is full")
        try:
            while True:
                tick(0.0)
        except BaseException as error:
            ended.append(type(error))
            raise

    monkeypatch.setattr(side_by_side, "run_task", work)
    monkeypatch.setattr(side_by_side, "AT_ONCE", 2)
    cells = grid(net="plain", depth=range(2, 8), width=5, seed=0, train_samples=40, epochs=1)
    with pytest.raises(StoreError, match="the disk is full"):
        run(cells, device="cuda:0", store=tmp_path, progress=False)
    assert len(begun) in (2, 3) and set(ended) == {side_by_side.GivenUpError}


# --- spectra ---------------------------------------------------------------------------------------------------------


def graded(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-300, 0, (2, width), generator=generator).double(),
            torch.randn(2, width, width, generator=generator, dtype=torch.float64))


def test_graded_matrices_have_the_cpus_singular_values():
    exponents, u = graded(20)
    here, _ = graded_singular_values(exponents, u)
    there, error = graded_singular_values(exponents.cuda(), u.cuda())
    assert there.device.type == error.device.type == "cuda"
    assert_close(there.cpu(), here, rtol=1e-13, atol=1e-11)


@pytest.mark.emulated
def test_graded_matrices_are_two_transfers_and_no_kernels(happened):
    exponents, u = (part.cuda() for part in graded(64))
    happened.clear()
    graded_singular_values(exponents, u)
    assert happened.kernels.total() == 0
    assert happened.transfers == {"D2H": 2, "H2D": 2}


# --- the monitor -----------------------------------------------------------------------------------------------------


def loop(model: nn.Module, monitor: GradientMonitor | None, steps: int, device: str) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y in (batch(seed=seed) for seed in range(steps)):
        optimizer.zero_grad()
        F.cross_entropy(model(x.to(device)), y.to(device)).backward()
        optimizer.step()


@pytest.mark.emulated
@pytest.mark.parametrize("every", [1, 3])
def test_a_record_waits_for_nothing(every, happened):
    """No more waits with a monitor than without: numbers come when they are there."""
    counts = []
    for watched in (False, True):
        model = build("HighwayNet-tanh-L9").cuda()
        monitor = GradientMonitor(model, every=every)
        happened.clear()
        if watched:
            with monitor:
                loop(model, monitor, 7, "cuda")
                assert len(monitor.frame)
        else:
            loop(model, None, 7, "cuda")
        counts.append(happened.waits.total())
    assert counts[1] == counts[0]


def test_the_gradients_of_all_shapes_are_measured_in_one_call(monkeypatch):
    """The numbers are the CPU's, where each shape is a call of its own."""
    calls, foreach_norm, frames = [], torch._foreach_norm, []
    monkeypatch.setattr(torch, "_foreach_norm", lambda tensors, *a, **named: calls.append(len(tensors))
                        or foreach_norm(tensors, *a, **named))
    for device in ("cpu", "cuda"):
        model = build("HighwayNet-tanh-L9").to(device)
        monitor = GradientMonitor(model, quantities=["log10_weight_gradient_norm"])
        with monitor:
            loop(model, monitor, 3, device)
            frames.append(monitor.frame["log10_weight_gradient_norm"])
    assert calls == 3 * [9]   # the weights of all layers
    assert_close(*(torch.from_numpy(frame.to_numpy(copy=True)) for frame in frames[::-1]), rtol=0, atol=1e-5)
