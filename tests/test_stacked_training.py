"""Stacked training by hand: autograd's gradients, no trace of how nets were grouped, and nothing lost by a kill."""

import io
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MethodType
from unittest.mock import Mock

import pytest
import torch
from cases import CLASSES, FEATURES, assert_same
from test_loop import SAMPLES, data, nets_of, settings, slow_training, weights_and_loss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from flowstudy import ACTIVATIONS, HighwayNet, PlainNet, ResidualNet, initialize
from flowstudy.nets import HighwayBlock, PlainBlock, ResidualBlock
from flowstudy.seal import MARK, SIZE
from flowstudy.train import Checkpoint, Moment, RecordAt, Stack, loop, stack, stack_states, train
from flowstudy.train.batches import Batches, batches
from flowstudy.train.precision import matrix_precision
from flowstudy.train.stacks import group
from flowstudy.train.stacks.activations import STACKED
from flowstudy.train.stacks.any_module import StackedModules
from flowstudy.train.stacks.compiled.compiler import BACKENDS, CHOICE, library
from flowstudy.train.stacks.cuda_graph import GraphedSteps
from flowstudy.train.stacks.fully_connected import StackedFullyConnected, trains_by_hand

KINDS = [PlainNet, HighwayNet, ResidualNet]


def use(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in this test is by that backend; compiled steps need a compiler."""
    if backend == "compiled" and library()[0] is None:
        pytest.skip(f"no compiled steps: {library()[1]}")
    monkeypatch.setenv(CHOICE, backend)


def nets(kind: type[nn.Module], activation: str, width: int, depth: int, count: int, dtype: torch.dtype) -> list:
    made = [kind(FEATURES, width, depth, CLASSES, activation).to(dtype) for _ in range(count)]
    return [initialize(net, "glorot_normal", seed=i) for i, net in enumerate(made)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_by_hand_are_autograds(kind, activation):
    """Three steps of a padded batch give the weights and losses that autograd gives: float64, 1e-12 of their size.

    Depth 1 has an input layer alone; a width of 13 and a batch of 7 fit no vector.
    """
    for depth in (1, 2, 5):
        samples = data(torch.float64)
        many = stack(nets(kind, activation, 13, depth, 3, torch.float64))
        momentum = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
        hand = StackedFullyConnected(many.template, many.state, momentum, samples.x_train, samples.y_train, 8)
        auto = StackedModules(many.template, many.state, momentum, samples.x_train, samples.y_train)
        for one in (hand, auto):
            one.set_rate(torch.tensor([0.2, 0.05, 0.01], dtype=torch.float64))
            for batch in zip(*batches(21, 7, 0, 0), strict=True):
                one.step(*batch)
        moved = max((auto.parameters()[name] - value).abs().max().item() for name, value in many.state.items())
        assert moved > 1e-3
        assert_close(hand.parameters(), auto.parameters(), rtol=1e-12, atol=1e-13)
        assert_close(hand.velocities(), auto.velocities(), rtol=1e-11, atol=1e-14)
        assert_close(hand.loss(), auto.loss(), rtol=1e-12, atol=0)


class Doubled(PlainBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class TwiceRead(PlainNet):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def double(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
    return 2 * output


def sine(block: PlainBlock, x: Tensor) -> Tensor:
    return torch.sin(block.affine(x))


def replaced(part: str, make: Callable[[], nn.Module]) -> Callable[[nn.Module], object]:
    def change(net: nn.Module) -> None:
        holder, _, name = part.rpartition(".")
        net.get_submodule(holder)._modules[name] = make()

    return change


CHANGES = {
    "net": lambda net: setattr(net, "__class__", TwiceRead),
    "forward of its own": lambda net: setattr(net.blocks[1], "forward", MethodType(sine, net.blocks[1])),
    "block": lambda net: setattr(net.blocks[1], "__class__", Doubled),
    "affine": lambda net: setattr(net.blocks[1].affine, "__class__", Scaled),
    "read-out": lambda net: setattr(net.readout, "__class__", Scaled),
    "hook on the net": lambda net: net.register_forward_hook(double),
    "hook on a block": lambda net: net.blocks[1].register_forward_hook(double),
    "hook on an affine map": lambda net: net.blocks[1].affine.register_forward_hook(double),
    "hook before": lambda net: net.blocks.register_forward_pre_hook(lambda _module, args: (2 * args[0],)),
    "weight norm": lambda net: parametrizations.weight_norm(net.blocks[1].affine),
    "no bias": replaced("blocks.1.affine", lambda: nn.Linear(13, 13, bias=False)),
    "another activation": lambda net: setattr(net.blocks[1], "activation", "gelu"),
    "a module between": replaced("blocks.1", lambda: nn.Sequential(PlainBlock(nn.Linear(13, 13)), nn.Tanh())),
    "another width": lambda net: [replaced("blocks.0", lambda: PlainBlock(nn.Linear(13, 6)))(net),
                                  replaced("blocks.1", lambda: PlainBlock(nn.Linear(6, 13)))(net)],
    "another kind": replaced("blocks.1", lambda: HighwayBlock(nn.Linear(13, 26))),
    "residual input": replaced("input", lambda: ResidualBlock(nn.Linear(FEATURES, FEATURES))),
    "deeper read-out": replaced("readout", lambda: nn.Sequential(nn.Linear(13, 4), nn.Linear(4, CLASSES))),
    "tied": lambda net: setattr(net.blocks[1].affine, "weight", net.blocks[0].affine.weight),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_net_that_is_no_known_one_trains_as_what_it_is(case):
    """Built as for training, three steps of it are autograd's of the changed net, weight by weight: float64, 1e-12."""
    made = nets(PlainNet, "tanh", 13, 4, 2, torch.float64)
    if case == "residual input":
        made = nets(PlainNet, "tanh", FEATURES, 4, 2, torch.float64)
    for net in made:
        CHANGES[case](net)
        net.double()
    many, samples = stack(made), data(torch.float64)
    momentum = torch.tensor([0.0, 0.9], dtype=torch.float64)
    built = group.builder(many.template, samples.x_train, samples.y_train, 8, "torch")(many, momentum)
    built.set_rate(torch.full((2,), 0.05, dtype=torch.float64))
    optimizers = [torch.optim.SGD(net.parameters(), 0.05, momentum=m) for net, m in zip(made, [0.0, 0.9], strict=True)]
    for index, weight in zip(*batches(21, 7, 0, 0), strict=True):
        built.step(index, weight)
        for net, optimizer in zip(made, optimizers, strict=True):
            optimizer.zero_grad()
            losses = F.cross_entropy(net(samples.x_train[index]), samples.y_train[index], reduction="none")
            (losses * weight).sum().backward()
            optimizer.step()
    for i, net in enumerate(made):
        for name, value in net.named_parameters():
            assert_close(built.parameters()[name][i], value.detach(), rtol=1e-12, atol=1e-13)


def test_backward_hooks_are_refused():
    """vmap leaves them out: the net would train as if it had none."""
    made, samples = nets(PlainNet, "tanh", 13, 4, 2, torch.float64), data(torch.float64)
    for net in made:
        net.blocks[1].register_full_backward_hook(lambda _module, into, _out: (2 * into[0],))
    with pytest.raises(ValueError, match=r"^train: `nets` must have no backward hooks, got PlainNet with some"):
        train(stack(made), samples, settings([0.1, 0.1], epochs=1))


def test_frozen_weights_are_refused():
    """They would be trained."""
    made = nets(PlainNet, "tanh", 13, 4, 2, torch.float64)
    for net in made:
        net.blocks[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"^train: `nets` must have no frozen weights, got 'blocks\.1\.aff"):
        train(stack(made), data(torch.float64), settings([0.1, 0.1], epochs=1))


@pytest.mark.parametrize("case", ["forward of its own", "hook on a block", "block"])
def test_nets_that_compute_otherwise_do_not_stack(case):
    """The forward pass is the first net's: a hook, or a class of the same name, on another would be lost."""
    made = nets(PlainNet, "tanh", 13, 4, 2, torch.float64)
    CHANGES[case](made[1])
    with pytest.raises(ValueError, match=r"^stack: all nets must have the structure of the first, nets\[1\]"):
        stack(made)


def test_known_nets_are_trained_by_hand():
    """The library's own, of every kind and depth: none has fallen out of the fast way."""
    for kind, depth in itertools.product(KINDS, (1, 2, 5)):
        assert trains_by_hand(kind(FEATURES, 13, depth, CLASSES, "tanh"))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_are_the_nets(name, dtype):
    """In place or not, each is the module's own function, to 3 units in the last place; huge and tiny inputs too."""
    corners = torch.tensor([0.0, 1e-30, -1e-8, 1e4, -1e30], dtype=dtype)
    x = torch.cat([torch.linspace(-30, 30, 6001, dtype=dtype), corners])
    expected = ACTIVATIONS[name](x.double()).to(dtype)
    out = torch.empty(1, 1, len(x), dtype=dtype)
    STACKED[name].forward(x.clone().view(1, 1, -1), out, torch.empty_like(out))
    ulp = torch.finfo(dtype).eps * expected.abs() + torch.finfo(dtype).tiny
    # torch's own gelu loses digits in the far tail, where 1 + erf cancels; it is the function in question all the same
    own = ACTIVATIONS[name](x) if name == "gelu" else expected
    assert ((out.view(-1) - own).abs() <= 3 * ulp).all()
    bad = torch.full((1, 1, 4), torch.nan, dtype=dtype)
    STACKED[name].forward(bad.clone(), out4 := torch.empty_like(bad), torch.empty_like(bad))
    assert out4.isnan().all()


@pytest.mark.parametrize("kind, activation, width, batch_size", [
    (kind, *rest) for kind, rest in itertools.product(
        KINDS, [("tanh", 50, 20), ("relu", 13, 7), ("sigmoid", 71, 5), ("gelu", 7, 3), ("erf", 33, 30)])])
@pytest.mark.parametrize("backend, dtype", [("torch", torch.float32), ("torch", torch.float64),
                                            ("compiled", torch.float32)])
def test_what_a_net_becomes_does_not_depend_on_its_group(kind, activation, width, batch_size, backend, dtype,
                                                         monkeypatch):
    """Five nets in one chunk, in chunks of two on two threads, or each alone: the same to the last bit."""
    use(backend, monkeypatch)
    samples, rates = data(dtype), [0.1, 0.02, 0.05, 0.01, 0.03]
    made = nets(kind, activation, width, 3, 5, dtype)
    together = train(stack(made), samples, settings(rates, [0.9] * 5, batch_size=batch_size))
    monkeypatch.setattr(group, "CHUNK", 2)
    monkeypatch.setattr(group, "COMPILED_CHUNK", 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        apart = train(stack(made), samples, settings(rates, [0.9] * 5, batch_size=batch_size))
    finally:
        torch.set_num_threads(threads)
    assert torch.get_num_threads() == threads and together.backend == backend
    for i in range(5):
        alone = train(stack(made[i:i + 1]), samples, settings(rates[i:i + 1], [0.9], batch_size=batch_size))
        assert_same(weights_and_loss(together, i), weights_and_loss(alone, 0))
        assert_same(weights_and_loss(together, i), weights_and_loss(apart, i))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_nets_of_other_activations_do_not_matter(kind, backend, monkeypatch):
    """All activations in one stack, those of one that follow each other in one call, in chunks that begin anywhere,
    one net dropped on the way: losses and weights to the last bit those of each net alone."""
    use(backend, monkeypatch)
    names = [name for name in ACTIVATIONS for _ in range(2)]
    rates = [0.1, 0.02] * len(ACTIVATIONS)
    rates[names.index("linear")] = 1e6
    made = [initialize(kind(FEATURES, 13, 4, CLASSES, name), "glorot_normal", seed=i) for i, name in enumerate(names)]
    whole = stack_states(made[0], [dict(net.named_parameters()) for net in made])
    monkeypatch.setattr(group, "CHUNK", 5)
    plan = settings(rates, [0.9] * len(names), batch_size=7)
    together = train(Stack(whole.template, whole.state, tuple(names)), data(), plan)
    assert (together.diverged >= 0).tolist() == [rate > 1 for rate in rates]
    for i, net in enumerate(made):
        alone = train(stack([net]), data(), settings(rates[i:i + 1], [0.9], batch_size=7))
        assert_close(weights_and_loss(together, i), weights_and_loss(alone, 0), rtol=0, atol=0, equal_nan=True)
        assert together.stack.net(i).hidden_layers[-1].activation == names[i]


def test_any_stacked_nets_may_differ_in_activation():
    """Kinds without a stacked layer too, by automatic differentiation: in float64 the losses and weights as by hand."""
    names = ["relu", "relu", "tanh", "gelu", "relu"]
    made = [initialize(PlainNet(FEATURES, 13, 3, CLASSES, name), "glorot_normal", seed=i).double()
            for i, name in enumerate(names)]
    whole, samples = stack_states(made[0], [dict(net.named_parameters()) for net in made]), data(torch.float64)
    many = Stack(whole.template, whole.state, tuple(names))
    assert_close(many(samples.x_train), torch.stack([net(samples.x_train) for net in made]), rtol=1e-13, atol=1e-14)
    momentum = torch.full((5,), 0.5, dtype=torch.float64)
    hand = StackedFullyConnected(many.template, many.state, momentum, samples.x_train, samples.y_train, 8,
                                 many.activations)
    auto = StackedModules(many.template, many.state, momentum, samples.x_train, samples.y_train, many.activations)
    for one in (hand, auto):
        one.set_rate(torch.full((5,), 0.1, dtype=torch.float64))
        for batch in zip(*batches(21, 7, 0, 0), strict=True):
            one.step(*batch)
    assert_close(hand.parameters(), auto.parameters(), rtol=1e-12, atol=1e-13)
    assert_close(hand.loss(), auto.loss(), rtol=1e-12, atol=0)


def test_replayed_nets_are_nets():
    """What a group asks of nets, those whose steps are replayed have too, by the names of the protocol."""
    many, samples = nets_of(range(2)), data()
    for make in (StackedFullyConnected, StackedModules):
        rest = (8,) if make is StackedFullyConnected else ()
        chunk = make(many.template, many.state, torch.zeros(2), samples.x_train, samples.y_train, *rest)
        assert isinstance(chunk, group.Nets) and isinstance(GraphedSteps(chunk), group.Nets)
        assert len(GraphedSteps(chunk)) == 2


def test_convolutional_nets_train_together_as_alone():
    """Any module stacks; on a CPU, where convolutions are faster one net at a time, to the last bit as alone."""
    def conv_net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(),
                             nn.Linear(4 * FEATURES, CLASSES))

    made, rates = [conv_net(seed) for seed in range(3)], [0.1, 0.2, 1e6]
    together = train(stack(made), data(), settings(rates, batch_size=7))
    for i in range(3):
        alone = train(stack(made[i:i + 1]), data(), settings(rates[i:i + 1], batch_size=7))
        assert_close(weights_and_loss(together, i), weights_and_loss(alone, 0), rtol=0, atol=0, equal_nan=True)
    losses = slow_training(made[0].double(), data(torch.float64), 0.1, 0.0, 1.0, 3)
    whole_batches = train(stack([conv_net(0).double()]), data(torch.float64), settings([0.1])).loss[0]
    assert_close(whole_batches, torch.tensor(losses, dtype=torch.float64), rtol=1e-12, atol=0)


def test_one_wild_net_among_forty(monkeypatch):
    """At learning rate 1e6 one of 40 diverges, is flagged and dropped; the others are what they are without it."""
    monkeypatch.setattr(group, "CHUNK", 7)
    rates = [0.05 + 0.001 * i for i in range(40)]
    rates[17] = 1e6
    samples = data()
    others = [i for i in range(40) if i != 17]
    with_it, without = (
        train(nets_of(which, "PlainNet-relu-L9"), samples, settings([rates[i] for i in which], batch_size=7, epochs=4))
        for which in (list(range(40)), others))
    assert with_it.diverged[17] == 1 and (with_it.diverged[others] == -1).all()
    for at, i in enumerate(others):
        assert_same(weights_and_loss(with_it, i), weights_and_loss(without, at))


def test_dropped_nets_cost_nothing(monkeypatch):
    """After the epoch in which a net diverged no step sees it; when all have, no step is made."""
    use("torch", monkeypatch)
    seen, step = [], StackedFullyConnected.step
    monkeypatch.setattr(StackedFullyConnected, "step",
                        lambda nets, *batch: (seen.append(len(nets)), step(nets, *batch)))
    train(nets_of(range(3), "PlainNet-relu-L9"), data(), settings([0.05, 1e6, 0.05], epochs=3))
    assert seen == [3, 2, 2]
    seen.clear()
    history = train(nets_of(range(2), "PlainNet-relu-L9"), data(), settings([1e6, 1e6], epochs=5))
    assert seen == [2] and history.loss[:, 1:].isnan().all()


def test_threads_that_come_later_have_as_many_as_before():
    """A chunk trains in one thread: what a thread of somebody else finds afterwards is what torch had been told."""
    many, samples, found, threads = nets_of(range(2)), data(), [], torch.get_num_threads()
    chunk = StackedFullyConnected(many.template, many.state, torch.zeros(2), samples.x_train, samples.y_train, 8)
    try:
        torch.set_num_threads(2)
        assert group.in_threads(lambda _: torch.get_num_threads(), [chunk]) == [1]
        other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert found == [torch.get_num_threads()] == [2]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_weights_and_velocities_and_buffers_that_grow_with_the_batch(kind):
    """What is left at a batch of 0 is twice the parameters."""
    many, samples = stack(nets(kind, "tanh", 50, 3, 5, torch.float32)), data()
    four, eight = (StackedFullyConnected(many.template, many.state, torch.zeros(5), samples.x_train, samples.y_train,
                                         size).bytes() for size in (4, 8))
    assert 2 * four - eight == 2 * sum(value.nbytes for value in many.state.values())


def test_denormals_are_flushed_in_training_alone():
    """The threads that train count 1e-39 as 0; whoever called them does not, before, between and after."""
    tiny = torch.tensor([1e-39])
    samples, many = data(), nets_of(range(2))
    train(many, samples, settings([0.1, 0.1]))
    assert (tiny * 1.0).item() > 0
    chunk = StackedFullyConnected(many.template, many.state, torch.zeros(2), samples.x_train, samples.y_train, 8)
    assert group.in_threads(lambda _: (tiny * 1.0).item(), [chunk]) == [0.0]
    assert (tiny * 1.0).item() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_replayed_steps_are_steps(kind, device="cuda"):
    """100 steps of a captured graph, whole replays and the rest of them, are 100 steps one by one; and a net alone is
    that net in the stack: float32 over 100 tame steps, to 1e-3 of how far the weights have moved."""
    samples, made = data(device=device), nets(kind, "tanh", 13, 5, 3, torch.float32)
    plan = batches(SAMPLES, 3, 0, 0)
    plan = Batches(plan.index.repeat(10, 1), plan.weight.repeat(10, 1))
    ends = []
    for graphed, which in ((True, slice(0, 3)), (False, slice(0, 3)), (True, slice(1, 2))):
        many = stack(made[which], device)
        chunk = StackedFullyConnected(many.template, many.state, torch.full((len(many),), 0.9, device=device),
                                      samples.x_train, samples.y_train, plan.index.shape[1])
        chunk.set_rate(torch.full((len(many),), 0.01, device=device))
        if graphed:
            GraphedSteps(chunk).run(plan.part(0, 100))
        else:
            for index, weight in zip(*plan.part(0, 100), strict=True):
                chunk.step(index.to(device), weight.to(device))
        ends.append({name: value - many.state[name] for name, value in chunk.parameters().items()})
    replayed, stepped, alone = ends
    for name, moved in stepped.items():
        far = moved.abs().amax().item()
        assert_close(replayed[name], moved, rtol=0, atol=1e-3 * far)
        assert_close(alone[name][0], moved[1], rtol=0, atol=1e-3 * far)


# --- looking, and being killed ---------------------------------------------------------------------------------------


class Watch:
    """An observer that keeps the moment and the sum of all finite weights."""

    def __init__(self):
        self.seen: list[list[float]] = []

    def __call__(self, moment: Moment) -> None:
        total = sum(value.double().nan_to_num(0, 0, 0).sum().item() for value in moment.stack.state.values())
        self.seen.append([moment.step, moment.epoch, total])

    def state(self) -> dict:
        return {"seen": self.seen}

    def restore(self, state: dict) -> None:
        self.seen = state["seen"]


def test_moments_are_those_asked_for():
    """Epochs and steps, 0 and the last included, each once, in order; the nets are those of a shorter run."""
    watch = Watch()
    plan = settings([0.1, 0.2], batch_size=10, epochs=3)  # three updates an epoch
    train(nets_of(range(2)), data(), plan, at=RecordAt(epochs=[0, 2, -1], steps=[3, 4, 9]), observer=watch)
    assert [seen[:2] for seen in watch.seen] == [[0, 0], [3, 1], [4, 4 / 3], [6, 2], [9, 3]]
    shorter = train(nets_of(range(2)), data(), settings([0.1, 0.2], batch_size=10, epochs=2)).stack
    assert watch.seen[3][2] == sum(value.double().sum().item() for value in shorter.state.values())


@pytest.mark.parametrize("bad, message", [
    ({}, "at least one of"), ({"epochs": [-2]}, "`epochs` must be integers of at least -1"),
    ({"steps": [1.5]}, "`steps` must be integers of at least 0")])
def test_a_moment_that_cannot_be_is_refused(bad, message, annotations_unchecked):
    with pytest.raises(ValueError, match=f"^RecordAt: .*{message}"):
        RecordAt(**bad)


def test_a_moment_after_the_end_is_refused():
    with pytest.raises(ValueError, match=r"^RecordAt: must lie within training's 3 epochs of 3 updates, got update 10"):
        train(nets_of([0]), data(), settings([0.1], batch_size=10), at=RecordAt(steps=[10]), observer=Watch())


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_run_goes_on_to_the_same_numbers(kill_at, backend, device, tmp_path, monkeypatch):
    """Stopped after any write of the checkpoint, the run that resumes ends as one that was never stopped, bit for bit.

    One net diverges in the first epoch: what was dropped stays dropped.
    """
    use(backend, monkeypatch)
    plan = settings([0.1, 1e6, 0.05], [0.9, 0.0, 0.5], [0.9, 1.0, 0.95], batch_size=7, epochs=3)
    monkeypatch.setattr(loop, "SEGMENT", 0.0)  # one step between two looks at the clock
    monkeypatch.setattr(loop.Run, "first_segment", 1)
    at = RecordAt(epochs=[0, 1, -1], steps=[3, 7])

    def run(watch: Watch, checkpoint: Checkpoint | None) -> loop.History:
        return train(nets_of(range(3), "PlainNet-relu-L9", device=device), data(device=device), plan, at=at,
                     observer=watch, checkpoint=checkpoint)

    whole = Watch()
    expected = run(whole, None)
    writes, save = itertools.count(1), Checkpoint.save

    def save_and_die(checkpoint: Checkpoint, state: dict) -> None:
        save(checkpoint, state)
        if next(writes) == kill_at:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        run(Watch(), Checkpoint(tmp_path / "run.pt", seconds=0.0, key="a"))
    resumed = Watch()
    history = run(resumed, Checkpoint(tmp_path / "run.pt", seconds=0.0, key="a"))
    for i in range(3):
        assert_close(weights_and_loss(history, i), weights_and_loss(expected, i), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(history.diverged, expected.diverged)
    assert resumed.seen == whole.seen


def test_a_checkpoint_that_cannot_be_used_is_set_aside(tmp_path):
    """Cut short, of another run, or no checkpoint at all: kept under another name, with a warning, and not loaded."""
    for i, spoil in enumerate([lambda p: p.write_bytes(p.read_bytes()[:100]), lambda p: p.write_bytes(b""),
                               lambda p: (p.unlink(), Checkpoint(p, key="another").save({"done": 1}))]):
        checkpoint = Checkpoint(tmp_path / f"{i}.pt", key="mine")
        checkpoint.save({"done": 3, "losses": [torch.ones(2)]})
        assert_same(checkpoint.load()["losses"], [torch.ones(2)])
        spoil(checkpoint.path)
        content = checkpoint.path.read_bytes()
        with pytest.warns(UserWarning, match=r"^Checkpoint: .*set aside as .*\.unreadable"):
            assert checkpoint.load() is None
        assert (tmp_path / f"{i}.pt.unreadable").read_bytes() == content and not checkpoint.path.exists()
    assert Checkpoint(tmp_path / "none.pt").load() is None


@pytest.mark.parametrize("number", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_changed_bit_of_a_checkpoint_is_found(tmp_path, number):
    """One bit anywhere: the file is set aside, and the run goes on from the checkpoint before.

    The only bits that may pass are those of the words before the digest, behind which the state is what it was.
    """
    generator = torch.Generator().manual_seed(0)
    earlier, later = ({"done": i, "w": torch.randn(20, 20, generator=generator)} for i in (1, 2))
    checkpoint = Checkpoint(tmp_path / "run.pt", key="mine")
    checkpoint.save(earlier)
    checkpoint.save(later)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    whole = kept[checkpoint.path]
    words = len(whole) - SIZE
    for bit in torch.randint(8 * len(whole), (number,), generator=generator).tolist():
        place = bit // 8
        checkpoint.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit % 8]) + whole[place + 1:])
        if words <= place < words + len(MARK):
            assert_same(checkpoint.load()["w"], later["w"])
            continue
        with pytest.warns(UserWarning, match=r"^Checkpoint: .* goes on from the one before"):
            state = checkpoint.load()
        assert state["done"] == 1 and torch.equal(state["w"], earlier["w"])
    assert torch.equal(torch.load(io.BytesIO(whole), weights_only=True)["state"]["w"], later["w"])
    checkpoint.path.write_bytes(whole)
    checkpoint.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt.unreadable"]


def test_a_checkpoint_from_before_digests_is_read(tmp_path):
    """As torch.save wrote it; a bit of its weights is found by the archive's own checksums."""
    state, checkpoint = {"w": torch.ones(50, 50)}, Checkpoint(tmp_path / "run.pt", key="mine")
    torch.save({"key": "mine", "state": state}, checkpoint.path)
    assert torch.equal(checkpoint.load()["w"], state["w"])
    content = bytearray(checkpoint.path.read_bytes())
    content[content.index(torch.ones(50).numpy().tobytes()) + 40] ^= 1
    checkpoint.path.write_bytes(content)
    with pytest.warns(UserWarning, match="cannot be used"):
        assert checkpoint.load() is None


def test_a_checkpoint_that_was_being_written_leaves_the_one_before(tmp_path):
    """The writing that fails or is killed costs that checkpoint, not the one before it."""
    checkpoint = Checkpoint(tmp_path / "run.pt", key="mine")
    checkpoint.save({"done": 1})
    full = Checkpoint(checkpoint.path, key="mine", write=Mock(side_effect=OSError(28, "no space")))
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            full.save({"done": 2})
        assert checkpoint.load() == {"done": 1} and Checkpoint.key_of(checkpoint.path) == "mine"


@pytest.mark.parametrize("precision, message", [("half", "must be one of float32, tf32, got 'half'"),
                                                ("tf32", "must be 'float32' on cpu, got 'tf32'")])
def test_a_precision_that_cannot_be_is_refused(precision, message):
    with pytest.raises(ValueError, match=f"^train: `precision` {message}"):
        train(nets_of([0]), data(), settings([0.1], precision=precision))


# --- torch's switches of precision -----------------------------------------------------------------------------------

MATRICES, CONVOLUTIONS = torch.backends.cuda.matmul, torch.backends.cudnn.conv
SWITCHES = {  # as users set them, and what torch has for them; the last two contradict the older switches
    "as it comes": lambda: None,
    "older": lambda: torch.set_float32_matmul_precision("high"),
    "older, convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "newer, for all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "newer": lambda: setattr(MATRICES, "fp32_precision", "tf32"),
    "newer, convolutions": lambda: setattr(CONVOLUTIONS, "fp32_precision", "ieee"),
}


def switches() -> dict[str, object]:
    """All that can be read; an older one that a newer one contradicts cannot."""
    backends = torch.backends
    parts = [backends, backends.cudnn, backends.mkldnn, MATRICES, CONVOLUTIONS, backends.cudnn.rnn,
             backends.mkldnn.matmul, backends.mkldnn.conv]
    found = {str(i): part.fp32_precision for i, part in enumerate(parts)}
    for name, read in {"matrices": torch.get_float32_matmul_precision, "cuda": lambda: MATRICES.allow_tf32,
                       "convolutions": lambda: backends.cudnn.allow_tf32}.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "contradicted"
    return found


SWITCHED = """
import torch
from test_stacked_training import CONVOLUTIONS, MATRICES, SWITCHES, data, nets_of, settings, switches, train
from flowstudy.train.precision import matrix_precision
SWITCHES[{case!r}]()
before = switches()
train(nets_of([0]), data(), settings([0.1], epochs=1))
assert switches() == before, (before, switches())
for precision, said in (("float32", "ieee"), ("tf32", "tf32")):
    with matrix_precision(precision, torch.device("cuda")):
        inside = switches()
        assert MATRICES.fp32_precision == CONVOLUTIONS.fp32_precision == said
        assert "contradicted" not in inside.values(), inside
    assert switches() == before, (before, switches())
one, other = (matrix_precision("float32", torch.device("cpu")) for _ in range(2))  # as of threads side by side
one.__enter__()
other.__enter__()
one.__exit__(None, None, None)
assert MATRICES.fp32_precision == CONVOLUTIONS.fp32_precision == "ieee"
other.__exit__(None, None, None)
assert switches() == before, (before, switches())
said = []
for precision in ("float32", "tf32", "float32"):  # one in the other
    said.append(matrix_precision(precision, torch.device("cuda")))
    said[-1].__enter__()
for expected in ("ieee", "tf32", "ieee"):
    assert MATRICES.fp32_precision == CONVOLUTIONS.fp32_precision == expected
    said.pop().__exit__(None, None, None)
assert switches() == before, (before, switches())
"""


@pytest.mark.parametrize("case", SWITCHES)
def test_precision_is_what_was_asked_for_and_the_switches_are_put_back(case):
    """Products of matrices and convolutions alike, whichever switch a user had set; in a process of its own."""
    answer = subprocess.run([sys.executable, "-c", SWITCHED.format(case=case)], cwd=Path(__file__).parent,
                            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert answer.returncode == 0, answer.stderr


def test_threads_of_two_precisions_are_refused():
    """torch has one switch for the process: the second thread's products would be the first one's."""
    here = torch.get_float32_matmul_precision()
    with matrix_precision("tf32", torch.device("cuda")), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(train, nets_of([0]), data(), settings([0.1], epochs=1))
        with pytest.raises(ValueError, match=r"^train: `precision` must be 'tf32' while another .* 'float32'"):
            answer.result()
        assert MATRICES.fp32_precision == "tf32"
    assert torch.get_float32_matmul_precision() == here
