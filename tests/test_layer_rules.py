"""Closed-form Jacobians of layers equal the general way, and only layers that they fit are given one."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flowstudy.measure import jacobian
from flowstudy.measure.models.layer_rules import UNITWISE, jacobians_of_sort, layer_rule, sort_of
from flowstudy.nets import ACTIVATIONS, HighwayBlock, PlainBlock, ResidualBlock


class Square(nn.Linear):
    def forward(self, x):
        return super().forward(x) ** 2


def hooked() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    return layer


LAYERS = {
    **{f"plain {name}": lambda name=name: PlainBlock(nn.Linear(6, 5), name) for name in ACTIVATIONS},
    **{f"highway {name}": lambda name=name: HighwayBlock(nn.Linear(6, 12), name, -1.0) for name in ACTIVATIONS},
    **{f"residual {name}": lambda name=name: ResidualBlock(nn.Linear(6, 6), name) for name in ACTIVATIONS},
    **{kind.__name__: lambda kind=kind: nn.Sequential(nn.Linear(6, 7), kind(), nn.Tanh()) for kind in UNITWISE},
    "linear": lambda: nn.Linear(6, 4), "in place": lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)),
    "closed gates": lambda: HighwayBlock(nn.Linear(6, 12), "tanh", -math.inf),
}
OTHERS = {
    "subclass": lambda: Square(6, 6), "hooked": hooked,
    "softmax": lambda: nn.Sequential(nn.Linear(6, 6), nn.Softmax(-1)),
    "two layers": lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), "function": lambda: torch.tanh,
    "dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rule_is_the_jacobian(name):
    """To rounding, for every sample; inside a batch the rows of the others play no part."""
    torch.manual_seed(0)
    layer, x = LAYERS[name]().double().requires_grad_(False), torch.randn(4, 6, dtype=torch.float64)
    assert_close(layer_rule(layer, x), jacobian(layer, x), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_one_sort_together_are_each_what_they_are_alone(name):
    torch.manual_seed(0)
    layers = [(LAYERS[name]().double().requires_grad_(False), torch.randn(4, 6, dtype=torch.float64)) for _ in range(3)]
    assert len({sort_of(layer) for layer in layers}) == 1
    alone = torch.stack([layer_rule(*layer) for layer in layers])
    assert_close(jacobians_of_sort(layers), alone, rtol=1e-15, atol=0.0)


def test_layers_that_differ_in_more_than_their_weights_are_of_two_sorts():
    x = torch.randn(4, 6)
    different = [(nn.Linear(6, 6), x), (nn.Linear(6, 5), x), (nn.Linear(6, 6), x[:3]),
                 (nn.Linear(6, 6).double(), x.double()), (nn.Sequential(nn.Linear(6, 6), nn.ReLU()), x),
                 *((nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(slope)), x) for slope in (0.1, 0.2)),
                 *((PlainBlock(nn.Linear(6, 6), name), x) for name in ("tanh", "relu")),
                 (ResidualBlock(nn.Linear(6, 6), "tanh"), x)]
    assert len({sort_of(layer) for layer in different}) == len(different)


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_rule_fits_has_none(name):
    assert layer_rule(OTHERS[name](), torch.randn(4, 6)) is None


def test_more_axes_than_one_have_none():
    """(sample, token, feature): the Jacobian is over tokens too."""
    assert layer_rule(nn.Linear(6, 6), torch.randn(2, 3, 6)) is None


def test_closed_gates_are_exactly_the_identity():
    layer = LAYERS["closed gates"]().double().requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(layer_rule(layer, x), torch.eye(6, dtype=torch.float64).expand(3, -1, -1))
