"""Training a stack: the authors' update rule, each net as if alone, divergence contained, losses with a meaning."""

import dataclasses
import itertools
import math

import pytest
import torch
from cases import CLASSES, FEATURES, assert_same, build
from torch import Tensor, nn
from torch.testing import assert_close

from flowstudy.data import Dataset
from flowstudy.nets import PlainNet
from flowstudy.train import History, Settings, Stack, stack, train
from flowstudy.train.batches import batches
from flowstudy.train.stacks import any_module, fully_connected
from flowstudy.train.stacks.any_module import cross_entropies
from flowstudy.train.stacks.group import Group

SAMPLES = 30


def data(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    y = (x[:, :2].sum(1) > 0).long() * (1 + torch.arange(SAMPLES) % (CLASSES - 1))  # uneven classes, half of them 0
    return Dataset("made up", x, y, x[:3], y[:3], CLASSES).to(device)


def settings(learning_rate: list[float], momentum: list[float] | None = None, decay: list[float] | None = None,
             **shared: int | str) -> Settings:
    nets = len(learning_rate)
    columns = (learning_rate, momentum or [0.0] * nets, decay or [1.0] * nets)
    return Settings(*(torch.tensor(c, dtype=torch.float64) for c in columns),
                    **({"epochs": 3, "batch_size": SAMPLES} | shared))


def nets_of(seeds: range | list[int], name: str = "PlainNet-tanh-L9", dtype: torch.dtype = torch.float32,
            device: str = "cpu") -> Stack:
    return stack([build(name, seed).to(dtype) for seed in seeds], device)


def weights_and_loss(history: History, i: int) -> list[Tensor]:
    return [history.loss[i], *(value[i] for value in history.stack.state.values())]


# --- the update rule -------------------------------------------------------------------------------------------------


def slow_training(net: nn.Module, samples: Dataset, learning_rate: float, momentum: float, decay: float,
                  epochs: int) -> list[float]:
    """The authors' convention by hand, one net, whole batches: v = m v - lr_t (1 - m) g, w += v."""
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    losses = []
    for epoch in range(epochs + 1):
        loss = nn.functional.cross_entropy(net(samples.x_train), samples.y_train)
        losses.append(loss.item())
        net.zero_grad()
        loss.backward()
        rate = max(1e-5, learning_rate * decay**epoch)
        if epoch < epochs:
            for p, v in zip(net.parameters(), velocity, strict=True):
                v.mul_(momentum).sub_(rate * (1 - momentum) * p.grad)
                p.data.add_(v)
    return losses


@pytest.mark.parametrize("name", ["PlainNet-relu-L9", "HighwayNet-tanh-L9"])
def test_steps_are_the_authors(name):
    """Five whole-batch steps of three nets are the hand-written ones, float64, learning-rate floor of 1e-5 included.

    The third net's rate would fall to 3e-9 without the floor, 1e-4 relative of its way: far above the 1e-12 asked.
    """
    per_net = [(0.3, 0.9, 0.95), (0.05, 0.0, 1.0), (3e-5, 0.5, 0.1)]
    samples = data(torch.float64)
    history = train(nets_of(range(3), name, torch.float64), samples, settings(*zip(*per_net, strict=True), epochs=5))
    for i, (learning_rate, momentum, decay) in enumerate(per_net):
        net = build(name, i).double()
        start = [p.detach().clone() for p in net.parameters()]
        losses = slow_training(net, samples, learning_rate, momentum, decay, epochs=5)
        assert_close(history.loss[i], torch.tensor(losses, dtype=torch.float64), rtol=1e-12, atol=0)
        for p, before, value in zip(net.parameters(), start, history.stack.state.values(), strict=True):
            way = (p - before).abs().max().item()
            assert way > 0
            assert_close(value[i], p.detach(), rtol=0, atol=1e-9 * way + 1e-15)


def test_torch_sgd_needs_the_rescaled_learning_rate():
    """A constant rate is torch.optim.SGD with lr = learning_rate (1 - momentum): the convention as documented."""
    samples, net = data(torch.float64), build("PlainNet-tanh-L2").double()
    history = train(stack([net]), samples, settings([0.2], [0.8], epochs=4))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.2 * (1 - 0.8), momentum=0.8)
    for _ in range(4):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(samples.x_train), samples.y_train).backward()
        optimiser.step()
    assert_close([v[0] for v in history.stack.state.values()], [p.detach() for p in net.parameters()],
                 rtol=1e-12, atol=1e-14)


def test_cross_entropy_is_torchs():
    """Net by net the cross-entropy is torch's, for logits of any size: float64, a few roundings."""
    logits = torch.randn(4, SAMPLES, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits *= torch.tensor([1e-3, 1.0, 50.0, 1e4]).view(-1, 1, 1)
    y = data().y_train
    expected = torch.stack([nn.functional.cross_entropy(one, y, reduction="none") for one in logits])
    assert_close(cross_entropies(logits, y), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("batch_size", [1, 7, SAMPLES, 1000])
def test_an_epoch_sees_every_sample_once(batch_size):
    """An epoch's batches are a permutation of the training set; the order follows from order seed and epoch alone.

    Each batch's weights are a mean's, over as many samples as a batch has; the padding weighs nothing.
    """
    order = {}
    for seed, epoch in itertools.product((3, 4), (0, 1)):
        index, weight = batches(SAMPLES, batch_size, seed, epoch)
        order[seed, epoch] = index[weight > 0].tolist()
        assert (weight.count_nonzero(1)[:-1] == batch_size).all()
        assert_close(weight.sum(1), torch.ones(len(weight), dtype=torch.float64), rtol=0, atol=1e-14)
        assert all(len(set(row[row > 0].tolist())) == 1 for row in weight)
    assert all(sorted(indices) == list(range(SAMPLES)) for indices in order.values())
    assert len({tuple(indices) for indices in order.values()}) == 4
    torch.manual_seed(5)
    again = batches(SAMPLES, batch_size, 3, 1)
    assert again.index[again.weight > 0].tolist() == order[3, 1]


# --- nets do not interact --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PlainNet-relu-L9", "HighwayNet-tanh-L9"])
def test_training_together_is_training_alone(name):
    """Each net of a stack ends with the losses and weights that it has when trained alone, to the last bit."""
    rates, momenta, decays = [0.3, 0.05, 0.1], [0.9, 0.0, 0.5], [0.9, 1.0, 0.95]
    samples = data(torch.float64)
    together = train(nets_of(range(3), name, torch.float64), samples, settings(rates, momenta, decays, batch_size=7))
    for i in range(3):
        alone = train(nets_of([i], name, torch.float64), samples,
                      settings([rates[i]], [momenta[i]], [decays[i]], batch_size=7))
        assert_same(weights_and_loss(together, i), weights_and_loss(alone, 0))


def test_diverging_net_is_flagged_and_contained(device):
    """At learning rate 1e6 a net's loss stops being finite: nan from the flagged epoch on; no neighbour notices, but
    for a GPU's rounding, which goes by how many nets there are."""
    tame, wild = ([0.1, rate, 0.2, 0.05] for rate in (0.1, 1e6))
    one, other = (train(nets_of(range(4), "PlainNet-relu-L9", device=device), data(device=device),
                        settings(rates, batch_size=7, epochs=4)) for rates in (tame, wild))
    for i in (0, 2, 3):
        if device == "cpu":
            assert_same(weights_and_loss(one, i), weights_and_loss(other, i))
        else:
            assert_close(one.loss[i], other.loss[i], rtol=1e-4, atol=0)
    assert one.diverged.tolist() == [-1] * 4
    first = other.diverged[1].item()
    assert other.diverged[[0, 2, 3]].tolist() == [-1] * 3
    assert first >= 1
    assert other.loss[1, :first].isfinite().all() and other.loss[1, first:].isnan().all()


def test_a_net_that_begins_as_nan_diverged_at_epoch_0():
    """A net of nan is marked from the start on."""
    nets = nets_of(range(2))
    for value in nets.state.values():
        value[1] = torch.nan
    history = train(nets, data(), settings([0.1, 0.1]))
    assert history.diverged.tolist() == [-1, 0]
    assert history.loss[0].isfinite().all() and history.loss[1].isnan().all()


def test_a_loss_that_comes_back_does_not_count(monkeypatch):
    """From the first epoch with a loss that is not finite, all is nan, also where a later loss would be finite."""
    losses = iter(torch.tensor([[2.0, 2.0], [1.0, math.inf], [0.5, 1.0], [0.4, math.nan]], dtype=torch.float64))
    monkeypatch.setattr(Group, "loss", lambda group: next(losses)[:len(group)])
    history = train(nets_of(range(2)), data(), settings([0.1, 0.1]))
    assert history.diverged.tolist() == [-1, 1]
    assert torch.equal(history.loss[0], torch.tensor([2.0, 1.0, 0.5, 0.4], dtype=torch.float64))
    assert history.loss[1, 0] == 2 and history.loss[1, 1:].isnan().all()


def test_training_leaves_the_given_stack_as_it_was():
    """The nets handed in are the nets at epoch 0 afterwards as well; the trained ones are new."""
    nets = nets_of(range(2))
    before = {name: value.clone() for name, value in nets.state.items()}
    history = train(nets, data(), settings([0.1, 0.1]))
    assert_same(nets.state, before)
    assert not any(value.requires_grad for value in nets.state.values())
    assert not torch.equal(history.stack.state["readout.weight"], before["readout.weight"])


def test_same_training_on_every_device(device):
    """On another device the losses differ by float32's rounding only: 1e-4 after three epochs at a tame rate."""
    here = train(nets_of(range(2)), data(), settings([0.1, 0.05], batch_size=7))
    there = train(nets_of(range(2), device=device), data(device=device),
                  dataclasses.replace(settings([0.1, 0.05], batch_size=7),
                                      **{key: getattr(settings([0.1, 0.05]), key).to(device)
                                         for key in ("learning_rate", "momentum", "decay")}))
    assert_close(there.loss, here.loss, rtol=1e-4, atol=0)


# --- losses ----------------------------------------------------------------------------------------------------------


def dead_net() -> nn.Module:
    """All weights and biases 0: no signal, no gradient but the read-out bias's."""
    net = PlainNet(FEATURES, 7, 3, CLASSES)
    for p in net.parameters():
        p.detach().zero_()
    return net


def class_prior_entropy(samples: Dataset) -> float:
    share = torch.bincount(samples.y_train).double() / SAMPLES
    return -(share * share.log()).sum().item()


def test_dead_net_starts_at_the_log_of_the_classes_and_ends_at_the_priors_entropy():
    """Without a signal the loss is ln(classes); all that training can reach, from above, is the priors' entropy."""
    samples = data(torch.float64)
    history = train(stack([dead_net().double()]), samples, settings([1.0], epochs=300))
    entropy = class_prior_entropy(samples)
    assert history.loss[0, 0].item() == pytest.approx(math.log(CLASSES), abs=1e-15)
    assert (history.loss[0] >= entropy - 1e-15).all() and (history.loss[0].diff() <= 1e-15).all()
    assert history.loss[0, -1].item() == pytest.approx(entropy, abs=1e-6)  # convex: it closes in geometrically
    assert not history.stack.state["readout.weight"].any()


def test_loss_does_not_depend_on_the_evaluation_batch(monkeypatch):
    """The mean over the whole training set, uneven last batch and all: float64 rounding."""
    nets, samples = nets_of(range(2), dtype=torch.float64), data(torch.float64)
    whole = train(nets, samples, settings([0.1, 0.1], epochs=0)).loss[:, 0]
    assert_close(whole, cross_entropies(nets(samples.x_train), samples.y_train).mean(1), rtol=1e-14, atol=0)
    monkeypatch.setattr(fully_connected, "EVALUATION_BATCH", 7)
    monkeypatch.setattr(any_module, "EVALUATION_BATCH", 7)
    assert_close(train(nets, samples, settings([0.1, 0.1], epochs=0)).loss[:, 0], whole, rtol=1e-14, atol=0)
    others = any_module.StackedModules(nets.template, nets.state, torch.zeros(2), samples.x_train, samples.y_train)
    assert_close(others.loss(), whole, rtol=1e-14, atol=0)


def test_epochs_are_counted_and_ticked():
    """epochs + 1 losses, the first before training; one tick per epoch, of all nets; none at 0 epochs."""
    ticks = []
    assert train(nets_of(range(3)), data(), settings([0.1] * 3, epochs=4), ticks.append).loss.shape == (3, 5)
    assert ticks == [3] * 4
    untrained = train(nets_of(range(3)), data(), settings([0.1] * 3, epochs=0), ticks.append)
    assert ticks == [3] * 4
    assert untrained.loss.shape == (3, 1) and untrained.diverged.tolist() == [-1] * 3
