"""The float64 copy: equal to copy.deepcopy(model).double(), faster, and sharing nothing with the model."""

import copy

import pytest
import torch
from cases import FEATURES, NETS, Awkward, assert_same, batch, fingerprint
from torch import nn

from flowstudy.measure import jacobian_spectrum, layer_jacobian_spectra
from flowstudy.measure.models.copies import float64_copy


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.two.weight = self.one.weight
        self.again = self.one
        self.steps, self.names, self.count = [self.one], {"first": self.one}, torch.zeros((), dtype=torch.int64)

    def forward(self, x):
        return self.two(self.one(x))


class Special(nn.Parameter):
    """A parameter of a kind that only deepcopy knows how to copy."""


class Unusual(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = Special(torch.eye(FEATURES) / 3)

    def __deepcopy__(self, memo):
        twin = Unusual()
        twin.weight = Special(self.weight.detach().clone())
        return twin

    def forward(self, x):
        return x @ self.weight


MODELS = {
    "highway": NETS["HighwayNet-tanh-L9"], "awkward": Awkward, "tied": Tied, "unusual": Unusual,
    "transformer": lambda: nn.TransformerEncoderLayer(FEATURES, 2, 8, batch_first=True),
    "lstm": lambda: nn.LSTM(FEATURES, 4), "mixed": lambda: nn.Sequential(nn.Linear(FEATURES, 4).half(), nn.Tanh()),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_copy_is_deepcopy_in_float64_without_gradients(name):
    """Same values, modes and structure as the obvious three calls; no tensor's memory is shared; the model stays."""
    torch.manual_seed(0)
    model = MODELS[name]().train()
    before = fingerprint(model)
    copied = float64_copy("test", model)
    expected = copy.deepcopy(model).double().requires_grad_(False)
    assert repr(copied) == repr(expected)
    assert {k: m.training for k, m in copied.named_modules()} == {k: m.training for k, m in expected.named_modules()}
    assert_same({k: (v, str(v.dtype)) for k, v in copied.state_dict().items()},
                {k: (v, str(v.dtype)) for k, v in expected.state_dict().items()})
    assert not any(p.requires_grad or p.grad is not None for p in copied.parameters())
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not own & {t.data_ptr() for t in (*copied.parameters(), *copied.buffers())}
    x = batch()[0].double()
    torch.testing.assert_close(copied.eval()(x), expected.eval()(x), rtol=0, atol=0)
    assert_same(before, fingerprint(model))


def test_a_frozen_float64_model_is_left_as_it_was():
    """Parameters, modes, hooks and random states stay, and no gradient is left behind."""
    net = NETS["HighwayNet-tanh-L9"]().double().requires_grad_(False)
    before = fingerprint(net)
    for method in ("product", "dense", "matrix_free"):
        jacobian_spectrum(net, batch()[0], method=method)
    layer_jacobian_spectra(net, batch()[0])
    assert_same(before, fingerprint(net))


def test_sharing_inside_the_model_is_kept():
    """Tied weights stay tied, a module held twice stays one, in lists and dictionaries too."""
    model = Tied()
    copied = float64_copy("test", model)
    assert copied.two.weight is copied.one.weight and copied.again is copied.one is copied.steps[0]
    assert copied.names["first"] is copied.one is not model.one
    copied.one.weight.zero_()
    assert model.one.weight.any()


def test_a_compiled_part_is_copied():
    """torch.compile's wrapper looks at what it wraps while it is copied."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Tanh(), nn.Linear(FEATURES, 3))
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), torch.compile(inner, backend="eager"))
    copied, (x, _) = float64_copy("test", model), batch(3)
    assert copied[1]._orig_mod[1].weight is not inner[1].weight
    torch.testing.assert_close(copied(x.double()), nn.Sequential(model[0], inner).double()(x.double()))
