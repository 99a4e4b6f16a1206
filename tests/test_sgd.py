"""The authors' optimiser is Caffe's, to rounding, also where the rate drops."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from flowstudy.nets import initialize_as_authors, mnist_conv_net
from flowstudy.train.convolutional.sgd import nesterov_sgd, set_learning_rate

MOMENTUM, DECAY = 0.9, 0.001
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}


class CaffeNesterov:
    """nesterov_solver.cpp line by line, with the multipliers of the authors' mnist_network.prototxt."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.history = {name: torch.zeros_like(p) for name, p in net.named_parameters()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for name, p in self.net.named_parameters():
            bias, readout = name.endswith("bias"), name.startswith("readout")
            lr_mult, decay_mult = (2, 0) if bias else (1, 10 if readout else 1)
            diff = p.grad + DECAY * decay_mult * p
            before = self.history[name].clone()
            self.history[name] = rate * lr_mult * diff + MOMENTUM * self.history[name]
            p -= (1 + MOMENTUM) * self.history[name] - MOMENTUM * before


def net_and_batches(dtype: torch.dtype, steps: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    net = initialize_as_authors(mnist_conv_net(4)).eval().to(dtype)  # eval: no dropout
    return net, [(torch.rand(3, 1, 28, 28, dtype=dtype), torch.randint(10, (3,))) for _ in range(steps)]


def run(net: nn.Module, batches: list, step) -> None:
    for i, (x, y) in enumerate(batches):
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        step(i)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("steps, drop", [(1, None), (50, 25)])
def test_steps_are_caffes(dtype, steps, drop):
    """One step, and 50 with the rate divided by 10 halfway: every weight is the reference's, to rounding."""
    ours, batches = net_and_batches(dtype, steps)
    theirs = copy.deepcopy(ours)
    optimizer, reference = nesterov_sgd(ours, 0.01, MOMENTUM, DECAY), CaffeNesterov(theirs)
    rates = [0.001 if drop is not None and i >= drop else 0.01 for i in range(steps)]

    def step(i: int) -> None:
        set_learning_rate(optimizer, rates[i])
        optimizer.step()

    run(ours, batches, step)
    run(theirs, batches, lambda i: reference.step(rates[i]))
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p, q, rtol=0, atol=ROUNDING[dtype], msg=lambda text, name=name: f"{name}: {text}")


def test_pytorch_alone_differs_from_caffe_after_a_drop():
    """By m^2 (old rate - new rate) b in the first update: what `set_learning_rate` is there for."""
    w = nn.Linear(3, 2, bias=False).double()
    twin = copy.deepcopy(w)
    pair = [nesterov_sgd(net, 0.1, MOMENTUM, 0.0, readout=net) for net in (w, twin)]
    for optimizer, net in zip(pair, (w, twin), strict=True):
        for _ in range(3):
            net.weight.grad = torch.arange(6.0, dtype=torch.float64).view(2, 3)
            optimizer.step()
    b = pair[1].state[twin.weight]["momentum_buffer"].clone()
    set_learning_rate(pair[0], 0.01)
    pair[1].param_groups[0]["lr"] = 0.01
    for optimizer in pair:
        optimizer.step()
    assert_close(twin.weight - w.weight, MOMENTUM**2 * (0.1 - 0.01) * b, rtol=1e-12, atol=1e-14)


def test_same_rate_changes_nothing():
    """Bit for bit, so that it may be set at every epoch."""
    net, batches = net_and_batches(torch.float32, 2)
    optimizer = nesterov_sgd(net, 0.01)
    run(net, batches, lambda _: optimizer.step())
    before = copy.deepcopy(optimizer.state_dict())
    set_learning_rate(optimizer, 0.01)
    for old, new in zip(before["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert torch.equal(old["momentum_buffer"], new["momentum_buffer"])


def test_groups_are_the_files_multipliers():
    """Biases: twice the rate, no decay. The read-out's weight: ten times the decay. All parameters once."""
    net = mnist_conv_net(4)
    groups = nesterov_sgd(net, 0.01, MOMENTUM, DECAY).param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    expected = {id(p): (0.02, 0.0) if name.endswith("bias") else (0.01, 0.01 if "readout" in name else 0.001)
                for name, p in net.named_parameters()}
    assert found == expected


def test_errors():
    with pytest.raises(ValueError, match=r"nesterov_sgd: `model` must have a module `readout`, got Linear without\."):
        nesterov_sgd(nn.Linear(2, 2), 0.1)
    with pytest.raises(ValueError, match=r"`momentum` in \(0, 1\).*got 0\.1, 1\.0"):
        nesterov_sgd(mnist_conv_net(4), 0.1, 1.0)
