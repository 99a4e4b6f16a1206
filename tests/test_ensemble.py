"""A stack of nets is its nets: each computes what it computes alone, whatever its neighbours are."""

import copy

import pytest
import torch
from cases import CLASSES, FEATURES, NETS, assert_same, batch, build
from torch import nn
from torch.testing import assert_close

from flowstudy.nets import PlainNet
from flowstudy.train import stack


@pytest.mark.parametrize("name", NETS)
def test_each_net_computes_what_it_computes_alone(name):
    """Row i of a stack's output is net i's, to rounding in float64: only the order of summation may differ."""
    nets, x = [build(name, seed).double() for seed in range(3)], batch()[0].double()
    assert_close(stack(nets)(x), torch.stack([net(x) for net in nets]), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["PlainNet-relu-L9", "HighwayNet-tanh-L9"])
def test_neighbours_do_not_matter(name):
    """Beside a net of nan every net's outputs are the same to the last bit, in another order to float32's rounding.

    Not to the last bit: a matrix at another place in memory may be aligned otherwise, and summed in another order.
    """
    many, (x, _) = stack([build(name, seed) for seed in range(4)]), batch()
    together = many(x)
    assert_close(stack([many.net(i) for i in (3, 1, 0, 2)])(x), together[[3, 1, 0, 2]], rtol=1e-5, atol=1e-6)
    for value in many.state.values():
        value[1] = torch.nan
    wild = many(x)
    assert torch.equal(wild[[0, 2, 3]], together[[0, 2, 3]])
    assert wild[1].isnan().all()


def test_nets_go_in_and_come_out_whole():
    """`net(i)` is net i, parameter by parameter; a stack holds copies, so neither changes the other."""
    nets = [build("HighwayNet-tanh-L9", seed) for seed in range(3)]
    before = copy.deepcopy([dict(net.state_dict()) for net in nets])
    many = stack(nets)
    assert len(many) == 3
    for i in range(3):
        assert_same(dict(many.net(i).state_dict()), before[i])
    for value in many.state.values():
        value.zero_()
    assert_same([dict(net.state_dict()) for net in nets], before)


def test_stacking_leaves_the_nets_where_they_are(device):
    """A stack on a device has its state there; the nets that it was made of stay on theirs."""
    nets = [build("PlainNet-tanh-L2", seed) for seed in range(2)]
    many = stack(nets, device)
    assert {value.device.type for value in many.state.values()} == {device}
    assert {p.device.type for net in nets for p in net.parameters()} == {"cpu"}


@pytest.mark.parametrize("nets, message", [
    (list, r"`nets` must hold at least 1, got"),
    (lambda: [build("PlainNet-relu-L2"), build("PlainNet-relu-L9")], r"nets\[1\] has another"),
    (lambda: [PlainNet(FEATURES, 7, 2, CLASSES), PlainNet(FEATURES, 8, 2, CLASSES)], r"nets\[1\] has another"),
    (lambda: [build("PlainNet-relu-L2"), build("PlainNet-tanh-L2")], r"nets\[1\] has another"),
    (lambda: [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))], r"nets\[0\] has some"),
], ids=["none", "depth", "width", "activation", "buffers"])
def test_only_nets_of_one_structure_stack(nets, message):
    """Nets of another depth, width or activation, or with buffers, are refused: one forward serves all."""
    with pytest.raises(ValueError, match=f"^stack: .*{message}"):
        stack(nets())
