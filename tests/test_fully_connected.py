"""The paper's fully connected nets: their size, how depth is counted, and nets whose gates are all closed."""

import pytest
import torch
from cases import CLASSES, FEATURES, NETS, batch, build
from torch import nn

from flowstudy.arguments import MOST_LAYERS
from flowstudy.nets import (
    HighwayBlock,
    HighwayNet,
    PlainBlock,
    PlainNet,
    ResidualBlock,
    ResidualNet,
    initialize,
)
from flowstudy.nets.blocks import check_positive_integer

PAPER = [(PlainNet, 10, 102_463), (PlainNet, 20, 153_583), (PlainNet, 50, 306_943), (PlainNet, 100, 562_543),
         (HighwayNet, 10, 85_660), (HighwayNet, 20, 136_660), (HighwayNet, 50, 289_660), (HighwayNet, 100, 544_660),
         (HighwayNet, 900, 4_624_660)]
BLOCKS = {PlainNet: PlainBlock, HighwayNet: HighwayBlock, ResidualNet: ResidualBlock}


@pytest.mark.parametrize("kind, depth, parameters", PAPER)
def test_parameter_counts_are_the_papers(kind, depth, parameters):
    """The eight nets of figure 1 and the 900-layer net have the paper's numbers of parameters by default."""
    assert sum(p.numel() for p in kind(depth=depth).parameters()) == parameters


@pytest.mark.parametrize("name", NETS)
def test_depth_counts_hidden_layers(name):
    """depth = one plain layer that changes the size + depth - 1 blocks of the net's kind; the read-out is no layer."""
    net = build(name)
    first, *blocks = net.hidden_layers
    assert 1 + len(blocks) == net.depth
    assert isinstance(first, PlainBlock) and first.affine.in_features == FEATURES
    assert {type(block) for block in blocks} <= {BLOCKS[type(net)]}
    affine = sum(isinstance(module, nn.Linear) for module in net.modules())
    assert affine == net.depth + 1


@pytest.mark.parametrize("name", NETS)
def test_forward_is_the_hidden_layers_then_the_readout(name):
    """What measurements take as the layers is what the net computes, bit for bit; leading axes pass through."""
    net, (x, _) = build(name), batch()
    h = x
    for layer in net.hidden_layers:
        h = layer(h)
    assert torch.equal(net(x), net.readout(h))
    assert net(x.expand(2, 3, *x.shape)).shape == (2, 3, len(x), CLASSES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_closed_net_of_100_layers_is_its_first_layer(dtype):
    """All gates closed: outputs, loss and the first layer's gradients are those of the net of depth 1, bit for bit."""
    shallow, deep = (initialize(HighwayNet(FEATURES, 8, depth, CLASSES, gate_bias=-torch.inf), "he_normal").to(dtype)
                     for depth in (1, 100))
    deep.readout.load_state_dict(shallow.readout.state_dict())
    assert torch.equal(deep.input.affine.weight, shallow.input.affine.weight)
    x, y = batch()
    for net in (shallow, deep):
        nn.functional.cross_entropy(net(x.to(dtype)), y).backward()
    assert torch.equal(deep(x.to(dtype)), shallow(x.to(dtype)))
    assert torch.equal(deep.input.affine.weight.grad, shallow.input.affine.weight.grad)
    assert all(not p.grad.any() for p in deep.blocks.parameters())


def test_gate_biases_are_one_per_block():
    """A highway net of depth L has L - 1 gate biases of `width` entries, all as asked for."""
    biases = HighwayNet(FEATURES, 8, 10, CLASSES, gate_bias=-3.5).gate_biases
    assert torch.equal(torch.stack(biases), torch.full((9, 8), -3.5))


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("argument", ["in_features", "width", "depth", "out_features"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
@pytest.mark.usefixtures("annotations_unchecked")
def test_sizes_must_be_positive_integers(kind, argument, value):
    """A size that is no positive integer is refused, and named, before anything is built."""
    message = f"{kind.__name__}: `{argument}` must be an integer of at least 1, got {value!r}"
    with pytest.raises(ValueError, match=message):
        kind(**{argument: value})


def test_layers_are_bounded_by_the_time_that_they_take_and_widths_are_not():
    check_positive_integer("PlainNet", depth=MOST_LAYERS, width=MOST_LAYERS + 1)
    with pytest.raises(ValueError, match=r"^PlainNet: `depth` must be"):
        check_positive_integer("PlainNet", depth=MOST_LAYERS + 1, width=1)
