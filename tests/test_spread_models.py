"""A model whose layers lie on several devices is measured where they lie, to the numbers of the same model on one."""

import copy

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from flowstudy import (
    GradientMonitor,
    assert_trainable,
    gate_activity,
    gradient_flow,
    jacobian_spectrum,
    layer_jacobian_spectra,
    trainability,
)
from flowstudy.measure.spectra import choice
from flowstudy.nets.blocks import HighwayBlock

pytestmark = [pytest.mark.gpu, pytest.mark.two_gpus]
WIDTH, DEPTH = 6, 8
ROUNDING = 1e-9   # relative: float64's over sixteen layers, each of whose condition numbers is below 1e4


class InParts(nn.Module):
    """Parts of a net one after the other, each fed where its weights are; the output comes back to `home`, if given."""

    def __init__(self, *parts: nn.Module, home: str | None = None):
        super().__init__()
        self.parts, self.home = nn.ModuleList(parts), home

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x.to(next(part.parameters()).device))
        return x if self.home is None else x.to(self.home)


class Branches(nn.Module):
    """Two branches that may lie on two devices meet on the first one's."""

    def __init__(self, one: nn.Module, other: nn.Module):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        there = next(self.other.parameters()).device
        return self.one(x) * self.other(x.to(there)).to(x.device)


class OneLayerOnTwo(nn.Module):
    """A layer that adds up what its two weights, on two devices, make of its input."""

    def __init__(self):
        super().__init__()
        self.near, self.far = (nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.near + (x.to(self.far.device) @ self.far).to(x.device)


def plain(depth: int = DEPTH) -> nn.Sequential:
    return nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))


def scaled(net: nn.Sequential, factor: float) -> nn.Sequential:
    for p in net.parameters():
        p.data *= factor
    return net


def gated() -> nn.Sequential:
    return nn.Sequential(*(HighwayBlock(nn.Linear(WIDTH, 2 * WIDTH), "tanh", -1.0) for _ in range(DEPTH)))


def on_one_and_on_two(name: str) -> tuple[nn.Module, nn.Module]:
    """A model on the CPU, and its twin with a part on a second device; the inputs of both lie on the first."""
    torch.manual_seed(3)
    model = {
        "chain": lambda: InParts(plain(), plain()),
        "small": lambda: InParts(*(scaled(plain(24), 2.0**-10) for _ in range(2))),  # gradients leave float64's range
        "back at home": lambda: InParts(plain(), plain(), home="cpu"),
        "there and back": lambda: InParts(plain(), plain(), plain()),
        "highway": lambda: InParts(gated(), gated()),
        "branches": lambda: Branches(plain(), plain()),
        "one layer on two": lambda: nn.Sequential(OneLayerOnTwo(), nn.Tanh(), OneLayerOnTwo()),
        "more outputs": lambda: InParts(plain(), nn.Linear(WIDTH, 2 * WIDTH)),
    }[name]().double()
    spread = copy.deepcopy(model).to("cuda:0")
    for far in [getattr(spread, "parts", [None, None])[1], getattr(spread, "other", None)]:
        if far is not None:
            far.to("cuda:1")
    for layer in spread.modules():
        if isinstance(layer, OneLayerOnTwo):
            layer.far.data = layer.far.data.to("cuda:1")
    if getattr(spread, "home", None) is not None:
        spread.home = "cuda:0"
    assert {p.device.index for p in spread.parameters()} == {0, 1}
    return model, spread


MODELS = ["chain", "small", "back at home", "there and back", "highway", "branches", "one layer on two", "more outputs"]


def inputs() -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["dense", "product"])
def test_the_spectrum_is_that_of_one_device(name, method):
    here, there = on_one_and_on_two(name)
    x = inputs()
    one, two = (jacobian_spectrum(model, batch, method=method, k=3) for model, batch in ((here, x),
                                                                                       (there, x.to("cuda:0"))))
    assert two.method == one.method
    resolved = ~one.log_singular_values.isnan()
    assert resolved.any()
    assert_close(two.log_singular_values, one.log_singular_values, rtol=0, equal_nan=True,
                 atol=ROUNDING + 2 * float(one.log_error[resolved].max()))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_layers_are_those_of_one_device(name):
    here, there = on_one_and_on_two(name)
    x = inputs()
    y = here(x).detach() + 0.1
    at = there(x.to("cuda:0")).device
    for targets in ((None, None), (y, y.to(at))):
        one, two = (gradient_flow(model, batch, aims, loss="mse") if aims is not None else gradient_flow(model, batch)
                    for model, batch, aims in zip((here, there), (x, x.to("cuda:0")), targets, strict=True))
        pd.testing.assert_frame_equal(two.frame, one.frame, rtol=ROUNDING)
        pd.testing.assert_frame_equal(two.path, one.path, rtol=ROUNDING)
        assert two.verdict.kind == one.verdict.kind
    if name not in ("branches", "one layer on two", "small"):
        one, two = (layer_jacobian_spectra(model, batch) for model, batch in ((here, x), (there, x.to("cuda:0"))))
        pd.testing.assert_frame_equal(two, one, rtol=ROUNDING)


@pytest.mark.parametrize("name", MODELS)
def test_the_monitor_records_what_it_does_on_one_device(name):
    frames = []
    for model, batch in zip(on_one_and_on_two(name), (inputs(), inputs().to("cuda:0")), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with GradientMonitor(model) as monitor:
            for _ in range(3):
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
        frames.append(monitor.frame)
    assert len(frames[0]) and frames[0].notna().all().all()
    pd.testing.assert_frame_equal(*frames, rtol=1e-6)   # norms of float64 weights, and their small differences


def test_gates_are_read_where_they_are():
    here, there = on_one_and_on_two("highway")
    y = torch.tensor([0, 1, 2, 0, 1])
    one, two = gate_activity(here, inputs(), y), gate_activity(there, inputs().to("cuda:0"), y.to("cuda:0"))
    pd.testing.assert_frame_equal(two.frame, one.frame, rtol=ROUNDING)
    pd.testing.assert_frame_equal(two.by_class, one.by_class, rtol=ROUNDING)


def test_dropout_on_the_second_device_keeps_one_mask_and_leaves_its_generator_alone():
    """The product of factors is one pass's Jacobian, and what is drawn afterwards is what would have been drawn."""
    _, model = on_one_and_on_two("chain")
    model.parts[1].append(nn.Dropout(0.5).to("cuda:1"))
    before = [torch.cuda.get_rng_state(device) for device in range(2)]
    found = [jacobian_spectrum(model, inputs().to("cuda:0"), mode="train", method=method).log_singular_values
             for method in ("product", "dense")]
    assert [torch.equal(torch.cuda.get_rng_state(device), before[device]) for device in range(2)] == [True, True]
    known = ~found[1].isnan()
    assert_close(found[0][known], found[1][known], rtol=0, atol=1e-6)   # the dense route's own floor


class Far(nn.Module):
    """A layer, and dropout on a device that holds no weight."""

    def __init__(self, there: str):
        super().__init__()
        self.layer, self.there = nn.Linear(WIDTH, WIDTH), there

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x.to(self.layer.weight.device)).to(self.there)
        return h + F.dropout(h, 0.4, training=True)


@pytest.mark.parametrize("places", [("cuda:0", "cuda:1"), ("cpu", "cuda:0")])
def test_what_is_drawn_where_no_weight_is_keeps_its_mask_too(places):
    here, there = places
    model, x = Far(there).to(here).double(), inputs().to(here)
    before = torch.cuda.get_rng_state(there)
    assert gradient_flow(model, x).repeatable
    found = [jacobian_spectrum(model, x, method=method).log_singular_values for method in ("product", "dense")]
    assert torch.equal(torch.cuda.get_rng_state(there), before)
    assert_close(*found, rtol=0, atol=ROUNDING)


class TwoInputs(nn.Module):
    def __init__(self, near: str, far: str):
        super().__init__()
        self.one, self.other, self.far = nn.Linear(WIDTH, WIDTH).to(near), nn.Linear(WIDTH, WIDTH).to(far), far

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.tanh(self.other(torch.tanh(self.one(u)).to(self.far) * v))


@pytest.mark.parametrize("wrt", [0, 1])
@pytest.mark.parametrize("method", ["dense", "product"])
def test_an_input_on_the_second_device_has_its_jacobian_too(wrt, method, monkeypatch):
    """Also where memory holds one sample at a time."""
    monkeypatch.setattr(choice, "MEMORY_BUDGET", 8 * WIDTH**2)
    torch.manual_seed(4)
    here = TwoInputs("cpu", "cpu").double()
    there = copy.deepcopy(here)
    there.one.to("cuda:0")
    there.other.to("cuda:1")
    there.far = "cuda:1"
    u, v = inputs(), inputs().flip(0)
    pairs = (here, (u, v)), (there, (u.to("cuda:0"), v.to("cuda:1")))
    one, two = (jacobian_spectrum(model, x, wrt=wrt, method=method).log_singular_values for model, x in pairs)
    assert_close(two, one, rtol=0, atol=ROUNDING)
    one, two = (gradient_flow(model, x).frame for model, x in pairs)
    pd.testing.assert_frame_equal(two, one, rtol=ROUNDING)


def test_autocast_of_every_device_is_set_aside():
    """The first weights are the CPU's, the others a GPU's, whose autocast the caller has on."""
    model = InParts(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).double()
    model.parts[1].to("cuda:0")
    plainly = gradient_flow(model.float(), inputs().float())
    with torch.autocast("cuda", torch.float16):
        found = gradient_flow(model, inputs().float())
    pd.testing.assert_frame_equal(found.frame, plainly.frame, rtol=ROUNDING)


def test_what_needs_one_device_says_so():
    _, model = on_one_and_on_two("chain")
    x, y = inputs().to("cuda:0"), torch.tensor([0, 1, 2, 0, 1], device="cuda:1")
    for ask in (trainability, assert_trainable):
        with pytest.raises(ValueError, match=f"{ask.__name__}: `model` must have .* one device, got cuda:0 and cuda:1"):
            ask(model, x, y)
    with pytest.raises(ValueError, match=r"method='matrix_free' needs .* one device, got one on cuda:0 and cuda:1"):
        jacobian_spectrum(model, x, method="matrix_free")
    with pytest.raises(ValueError, match="`x` must be on the model's device cuda:0 or cuda:1, got cpu"):
        jacobian_spectrum(model, inputs())
