"""Gradient flow of models that are not ours equals a slow twin that spells out each forward pass."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from slow_flow import statistics
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.measure import gradient_flow
from flowstudy.measure.gradients.statistics import STATISTICS

ABSOLUTE = 1e-10  # of a log10 norm, a share or a cosine, all of order one; measured 1e-13

Row = tuple[str, Tensor, list[Tensor]]  # module, output, weights


class Block(nn.Module):
    """conv, batch norm, in-place ReLU, conv, added to a 1 x 1 shortcut in place."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.one, self.norm, self.relu = nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(True)
        self.two, self.down = nn.Conv2d(out, out, 3, padding=1), nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.relu(self.norm(self.one(x))))
        y += self.down(x)
        return self.relu(y)


class Paths(nn.Module):
    """A layer used twice, a weight tied to another's, a frozen layer, one that the loss does not see, one not used."""

    def __init__(self):
        super().__init__()
        self.twice, self.tied, self.frozen, self.unseen, self.unused = (nn.Linear(6, 6) for _ in range(5))
        self.tied.weight = self.twice.weight
        self.frozen.requires_grad_(False)
        self.readout = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.tied(torch.tanh(self.twice(torch.tanh(self.twice(x))))))
        return self.readout(torch.tanh(self.frozen(h)) + self.unseen(h).detach())


class Scaled(nn.Module):
    """Parameters that belong to the model itself, one of them used through a product: not a chain of layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 5)
        self.weight, self.gain = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.full((1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(F.linear(self.one(x), self.gain * self.weight)))


class Own(nn.Module):
    """A layer that is no leaf of torch.nn's, inside a chain."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(x @ self.weight)


def mlp(model: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Row]]:
    a = model[0](x)
    b = model[2](torch.tanh(a))
    c = model[4](F.gelu(b))
    return c, [("0", a, [model[0].weight]), ("2", b, [model[2].weight]), ("4", c, [model[4].weight])]


def convolutional(model: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Row]]:
    a = model[0](x)
    b = model[1](a)
    c = model[3](torch.relu(b))
    d = model[6](torch.relu(c).flatten(1))
    return d, [("0", a, [model[0].weight]), ("1", b, [model[1].weight]), ("3", c, [model[3].weight]),
               ("6", d, [model[6].weight])]


def residual(model: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Row]]:
    h = model[0](x)
    rows = [("0", h, [model[0].weight])]
    for i in (1, 2):
        block = model[i]
        one = block.one(h)
        norm = block.norm(one)
        two = block.two(torch.relu(norm))
        down = block.down(h)
        h = torch.relu(two + down)
        rows += [(f"{i}.one", one, [block.one.weight]), (f"{i}.norm", norm, [block.norm.weight]),
                 (f"{i}.two", two, [block.two.weight]), (f"{i}.down", down, [block.down.weight])]
    y = model[5](h.mean((2, 3)))
    return y, [*rows, ("5", y, [model[5].weight])]


def transformer(model: nn.TransformerEncoder, x: Tensor) -> tuple[Tensor, list[Row]]:
    rows = []
    for i, layer in enumerate(model.layers):
        attention = layer.self_attn(x, x, x, need_weights=False)[0]
        x = layer.norm1(norm1 := x + attention)
        one = layer.linear1(x)
        two = layer.linear2(torch.relu(one))
        y = layer.norm2(x + two)
        at = f"layers.{i}."
        rows += [(at + "self_attn", attention, [layer.self_attn.in_proj_weight, layer.self_attn.out_proj.weight]),
                 (at + "norm1", x, [layer.norm1.weight]), (at + "linear1", one, [layer.linear1.weight]),
                 (at + "linear2", two, [layer.linear2.weight]), (at + "norm2", y, [layer.norm2.weight])]
        assert norm1.requires_grad
        x = y
    return x, rows


def paths(model: Paths, x: Tensor) -> tuple[Tensor, list[Row]]:
    w = model.twice.weight
    a = model.twice(x)
    b = model.twice(torch.tanh(a))
    c = model.tied(torch.tanh(b))
    d = model.frozen(torch.tanh(c))
    e = model.unseen(torch.tanh(c))
    f = model.readout(torch.tanh(d) + e.detach())
    return f, [("twice", a, [w]), ("twice", b, [w]), ("tied", c, [w]), ("frozen", d, []),
               ("unseen", e, [model.unseen.weight]), ("readout", f, [model.readout.weight])]


def scaled(model: Scaled, x: Tensor) -> tuple[Tensor, list[Row]]:
    a = model.one(x)
    b = a @ (model.gain * model.weight).T
    c = model.two(torch.tanh(b))
    return c, [("one", a, [model.one.weight]), ("weight", b, [model.weight, model.gain]),
               ("two", c, [model.two.weight])]


def own(model: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Row]]:
    a = model[0](x)
    b = a + torch.tanh(a @ model[1].weight)
    c = model[2](b)
    return c, [("0", a, [model[0].weight]), ("1", b, [model[1].weight]), ("2", c, [model[2].weight])]


def embedded(model: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Row]]:
    a = model[0].weight[x]
    b = model[2](torch.tanh(a.flatten(1)))
    return b, [("0", a, [model[0].weight]), ("2", b, [model[2].weight])]


class FlatTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable, tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 5)), mlp, (6,)),
    "convolutional": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(True), nn.Conv2d(3, 2, 2),
                                            nn.ReLU(True), nn.Flatten(), nn.Linear(18, 5)), convolutional, (2, 6, 6)),
    "residual": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), Block(3, 3), Block(3, 4), nn.AdaptiveAvgPool2d(1),
                                       nn.Flatten(), nn.Linear(4, 5)), residual, (2, 6, 6)),
    "transformer": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True), 2,
                                                  enable_nested_tensor=False), transformer, (4, 6)),
    "paths": (Paths, paths, (6,)),
    "own parameters": (Scaled, scaled, (6,)),
    "own layer": (lambda: nn.Sequential(nn.Linear(6, 6), Own(), nn.Linear(6, 5)), own, (6,)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(9, 3), FlatTanh(), nn.Linear(12, 5)), embedded, (4,)),
}


def square(output: Tensor, _y: None) -> Tensor:
    """A loss of any output; not the mean, so that no symmetry hides a mistake."""
    weights = torch.linspace(-1, 2, output[0].numel(), dtype=torch.float64).view(output[0].shape)
    return (output * weights).square().mean()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_forward_pass_spelt_out(name, training):
    """Every statistic of every layer, in order of execution; batch norm in both modes."""
    build, explicit, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().train(training)
    x = torch.randint(9, (7, *shape)) if name == "embedding" else torch.randn(7, *shape)
    flow = gradient_flow(model, x, loss=square)

    model = model.double().requires_grad_()
    x = x if name == "embedding" else x.double().requires_grad_()
    output, rows = explicit(model, x)
    loss = square(output, None)
    assert flow.frame["module"].tolist() == [module for module, _, _ in rows]
    expected = statistics(loss, [(h, weights) for _, h, weights in rows])
    for column in STATISTICS:
        np.testing.assert_allclose(flow.frame[column], expected[column], rtol=ABSOLUTE, atol=ABSOLUTE, err_msg=column)
    assert flow.loss == pytest.approx(loss.item(), rel=ABSOLUTE)
    if name == "embedding":
        assert math.isnan(flow.log10_input_gradient_norm)
    else:
        norm = torch.autograd.grad(loss, x)[0].norm().log10().item()
        assert flow.log10_input_gradient_norm == pytest.approx(norm, abs=ABSOLUTE)


def test_dropout_keeps_one_mask_for_the_whole_measurement():
    """In train mode the loss is one draw's, the same as a forward pass with the same random state gives."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 9), nn.Dropout(), nn.Linear(9, 9), nn.Dropout(), nn.Linear(9, 5)), None
    x = torch.randn(4, 6)
    torch.manual_seed(3)
    flow = gradient_flow(model, x, loss=square)
    torch.manual_seed(3)
    assert flow.loss == pytest.approx(square(model.double()(x.double()), None).item(), rel=1e-12)



class Pair(nn.Module):
    """A recurrent net: a tuple inside, a dictionary in the end."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, object]:
        h, state = self.lstm(x)
        return {"logits": self.head(h[:, -1]), "state": state}


def test_a_loss_of_ones_own_takes_the_output_as_it_is():
    """A dictionary here, of which a named loss takes the logits. Of a tuple inside, the first is the layer's.

    Every time step of the LSTM is a row, with the gradient of the weights that all of them share: autograd's own.
    """
    torch.manual_seed(0)
    model, x, y = Pair(), torch.randn(7, 3, 6), torch.arange(7) % 5
    flow = gradient_flow(model, x, y, loss=lambda output, labels: F.cross_entropy(output["logits"], labels))
    assert flow.frame["module"].tolist() == ["lstm", "lstm", "lstm", "head"]
    pd.testing.assert_frame_equal(gradient_flow(model, x, y).frame, flow.frame)
    model = model.double()
    weights = [getattr(model.lstm, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    states = [(torch.zeros(7, 4, dtype=torch.float64),) * 2]
    for t in range(3):
        states.append(torch.lstm_cell(x[:, t].double(), states[-1], *weights))
    logits = model.head(states[-1][0])
    expected = statistics(F.cross_entropy(logits, y), [
        *((h, weights[:2]) for h, _ in states[1:]), (logits, [model.head.weight])])
    for column in STATISTICS:
        np.testing.assert_allclose(flow.frame[column], expected[column], rtol=ABSOLUTE, atol=ABSOLUTE, err_msg=column)


@pytest.mark.parametrize("call", [lambda layer, h: torch.func.vmap(layer)(h),
                                  lambda layer, h: torch.func.vmap(torch.func.functional_call, (None, None, 0))(
                                      layer, dict(layer.named_parameters()), h)])
def test_a_layer_that_is_called_inside_vmap_is_refused(call):
    """What it puts out there is one of many tensors at once, which no error signal arrives at."""

    class Inside(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](call(self[0], x))

    with pytest.raises(ValueError, match=r"^gradient_flow: `model` must call .* outside of torch\.func\.vmap, got '0'"):
        gradient_flow(Inside(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(5, 3), torch.arange(5) % 2)


def test_weights_that_are_used_inside_vmap_alone_are_named():
    """An ensemble whose members' weights and biases are stacked parameters of its own."""

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights, self.biases = nn.Parameter(torch.randn(4, 2, 3)), nn.Parameter(torch.zeros(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(F.linear, (None, 0, 0))(x, self.weights, self.biases).mean(0)

    with pytest.raises(ValueError, match=r"got Ensemble, whose forward .* use none of 'weights', 'biases'\. Use"):
        gradient_flow(Ensemble(), torch.randn(5, 3), torch.arange(5) % 2)
