"""Jacobian spectra: equal to autograd's, exact where the Jacobian is known, and the model stays as it was."""

import math

import pytest
import torch
from cases import CLASSES, FEATURES, NETS, Awkward, assert_same, batch, build, fingerprint
from torch import Tensor, nn
from torch.testing import assert_close

from flowstudy.measure import JacobianSpectrum, jacobian_spectrum, stacked_jacobian_spectrum
from flowstudy.nets import HighwayNet, PlainNet, initialize
from flowstudy.train import stack


def slow_jacobian(function, sample: Tensor) -> Tensor:
    """Row by row: one autograd call per output."""
    x = sample.double().unsqueeze(0).requires_grad_()
    y = function(x).flatten()
    return torch.stack([torch.autograd.grad(one, x, retain_graph=True)[0].flatten() for one in y])


def assert_spectrum_of(spectrum: JacobianSpectrum, jacobians: list[Tensor]) -> None:
    """Each singular value is right to 1e-13 of the largest: what a backward-stable decomposition promises."""
    assert spectrum.log_singular_values.dtype == torch.float64
    for log_s, below, mean_squared, jacobian in zip(spectrum.log_singular_values, spectrum.below_floor,
                                                    spectrum.mean_squared, jacobians, strict=True):
        expected = torch.linalg.svdvals(jacobian)
        known = log_s.isfinite()
        assert_close(torch.where(known, log_s.exp(), 0.0), expected, rtol=0, atol=1e-13 * expected[0].item())
        assert below == log_s.isnan().sum()
        assert (log_s[known].diff() <= 0).all() and not known[known.sum():].any()
        assert_close(mean_squared, jacobian.square().sum() / jacobian.shape[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["product", "dense"])
@pytest.mark.parametrize("part", ["all", "body"])
@pytest.mark.parametrize("name", [name for name in NETS if not name.endswith("L1")])
def test_equal_to_autograd_row_by_row(name, part, method):
    """By either route both parts have the singular values of the Jacobian that a loop of autograd calls builds."""
    net, (x, _) = build(name), batch(3)
    spectrum = jacobian_spectrum(net, x, part=part, method=method)
    twin = build(name).double()
    first, *rest = twin.hidden_layers
    function, points = (twin, x) if part == "all" else (nn.Sequential(*rest), first(x.double()).detach())
    assert_spectrum_of(spectrum, [slow_jacobian(function, sample) for sample in points])


MODELS = {
    "wide": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 7)), (3, 4)),  # forward mode
    "convolutional": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                                            nn.Conv2d(3, 4, 2), nn.GELU()), (2, 2, 5, 6)),
    "awkward": (Awkward, (3, FEATURES)),
}


@pytest.mark.parametrize("chunk", [None, 1, 2, 1000])
@pytest.mark.parametrize("model", MODELS)
def test_any_module_in_eval_mode_whatever_the_chunk(model, chunk):
    """Any module, measured in eval mode, has autograd's singular values, forward or reverse, for any chunk."""
    torch.manual_seed(0)
    make, shape = MODELS[model]
    net, x = make(), torch.randn(shape)
    spectrum = jacobian_spectrum(net, x, chunk=chunk)
    assert net.training
    assert_spectrum_of(spectrum, [slow_jacobian(net.double().eval(), sample) for sample in x])


@pytest.mark.parametrize("part", ["all", "body"])
def test_orthogonal_linear_net_is_isometric(part):
    """60 orthogonal linear layers that never widen: every log singular value is 0 to 1e-10 (Saxe et al. 2014)."""
    net = initialize(PlainNet(40, 30, 60, 20, "linear").double(), "orthogonal")
    spectrum = jacobian_spectrum(net, part=part, samples=2)
    assert spectrum.log_singular_values.shape == (2, 20 if part == "all" else 30)
    assert spectrum.log_singular_values.abs().max() < 1e-10
    assert spectrum.log_condition_number.abs().max() < 1e-10


def test_orthogonal_linear_net_is_isometric_at_depth_1000():
    """`net.double()` before `initialize`: all |log s| < 1e-10; 1000 roundings of 1e-16 in each direction."""
    net = initialize(PlainNet(16, 16, 1000, 16, "linear").double(), "orthogonal", seed=1)
    spectrum = jacobian_spectrum(net, part="body", samples=2)
    assert spectrum.log_singular_values.abs().max() < 1e-10 and spectrum.factors == 999


def test_closed_highway_body_is_the_identity():
    """All gates closed: the body's Jacobian is I, every singular value 1 to rounding, for 100 layers."""
    net = initialize(HighwayNet(FEATURES, 8, 100, CLASSES, gate_bias=-math.inf), "he_normal")
    spectrum = jacobian_spectrum(net, part="body", samples=2)
    assert_close(spectrum.log_singular_values, torch.zeros(2, 8, dtype=torch.float64), rtol=0, atol=1e-14)
    assert not spectrum.below_floor.any()


def test_log_volume_is_the_sum_over_layers():
    """Linear net: the log singular values sum to the layers' sum of log |det W|.

    A backward-stable decomposition errs by width eps s_max in each value; of the smallest that is the condition more.
    """
    width = 16
    net = initialize(PlainNet(FEATURES, width, 4, CLASSES, "linear").double(), "lecun_normal", seed=1)
    spectrum = jacobian_spectrum(net, part="body", samples=1)
    volume = sum(block.affine.weight.slogdet().logabsdet for block in net.blocks)
    error = width * torch.finfo(torch.float64).eps * spectrum.log_condition_number.exp().item()
    assert error < 1e-6
    assert spectrum.log_singular_values.sum().item() == pytest.approx(volume.item(), abs=error)


@pytest.mark.parametrize("method", ["product", "dense"])
def test_rank_of_a_relu_net_is_its_narrowest_count_of_live_units(method):
    """As many values as the layer with fewest live units; of the rest the product route says 0, the dense not known."""
    net = initialize(PlainNet(FEATURES, 14, 4, CLASSES).double(), "he_normal", seed=3)
    x, _ = batch(6)
    spectrum = jacobian_spectrum(net, x, part="body", method=method)
    h, live = net.input(x.double()), []
    for block in net.blocks:
        h = block(h)
        live.append((h > 0).sum(1))
    rank = torch.stack(live).amin(0)
    assert torch.equal(spectrum.rank, rank)
    for log_s, one in zip(spectrum.log_singular_values, rank, strict=True):
        assert (log_s[one:].isnan() if method == "dense" else log_s[one:] == -math.inf).all()
    assert torch.equal(spectrum.below_floor, 14 - rank if method == "dense" else torch.zeros_like(rank))
    assert spectrum.log_condition_number.isinf().all()


@pytest.mark.parametrize("part", ["all", "body"])
@pytest.mark.parametrize("name", ["PlainNet-relu-L9", "HighwayNet-tanh-L9"])
def test_stack_is_measured_as_each_net_alone(name, part):
    """Row i of a stack is the spectrum of net i; a net of nan is nan and leaves its neighbours alone, to rounding.

    Not to the last bit: factors share a QR where the whole stack is well conditioned.
    """
    nets, (x, _) = [build(name, seed) for seed in range(3)], batch(2)
    many = stack(nets)
    log_s = stacked_jacobian_spectrum(many.template, many.state, x, part=part)
    for row, net in zip(log_s, nets, strict=True):
        assert_close(row, jacobian_spectrum(net, x, part=part).log_singular_values, rtol=0, atol=1e-10)
    for value in many.state.values():
        value[1] = torch.nan
    wild = stacked_jacobian_spectrum(many.template, many.state, x, part=part)
    assert_close(wild[[0, 2]], log_s[[0, 2]], rtol=0, atol=1e-12)
    assert wild[1].isnan().all()


def test_drawn_inputs_depend_on_the_seed_alone():
    """Without x the inputs are drawn: the same for a seed, others for another, whatever the global random state."""
    net = build("PlainNet-tanh-L9")
    once = jacobian_spectrum(net, samples=3).log_singular_values
    torch.manual_seed(123)
    assert torch.equal(jacobian_spectrum(net, samples=3).log_singular_values, once)
    assert not torch.equal(jacobian_spectrum(net, samples=3, seed=1).log_singular_values, once)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    """Parameters, gradients, modes, running statistics, hooks and the global random states stay."""
    torch.manual_seed(0)
    model, (x, _) = Awkward().train(training), batch()
    before = fingerprint(model), x.clone()
    jacobian_spectrum(model, x)
    assert_same(before, (fingerprint(model), x))
    assert x.grad is None


def test_same_numbers_on_every_device(device):
    """Singular values do not depend on the device beyond rounding; they come back on the CPU."""
    net, (x, _) = build("HighwayNet-tanh-L9"), batch()
    here = jacobian_spectrum(net, x).log_singular_values
    there = jacobian_spectrum(net.to(device), x.to(device)).log_singular_values
    assert there.device.type == "cpu"
    assert_close(there, here, rtol=0, atol=1e-10)


ERRORS = {
    "part": (ValueError, lambda: (build("PlainNet-tanh-L9"), batch()[0]), {"part": "head"},
             r"`part` must be 'all', 'body' .*got 'head'"),
    "no body": (ValueError, lambda: (build("PlainNet-tanh-L1"), batch()[0]), {"part": "body"}, r".*at least two"),
    "shape unknown": (ValueError, lambda: (nn.Sequential(nn.Conv2d(1, 1, 1)),), {}, r"`x` must be given.*Pass a batch"),
    "integers": (TypeError, lambda: (build("PlainNet-tanh-L9"), torch.ones(2, FEATURES).long()), {},
                 r"`x` must be real, got torch\.int64"),
    "no samples": (ValueError, lambda: (build("PlainNet-tanh-L9"),), {"samples": 0}, r"`samples` must be an integer"),
    "empty": (ValueError, lambda: (build("PlainNet-tanh-L9"), torch.ones(0, FEATURES)), {}, r"`x` must be a batch"),
    "nan": (ValueError, lambda: (build("PlainNet-tanh-L9"), torch.full((1, FEATURES), math.nan)), {}, r"`x` must be"),
    "method": (ValueError, lambda: (build("PlainNet-tanh-L9"),), {"method": "fast"}, r"`method` must be one of auto"),
    "function": (TypeError, lambda: (torch.tanh,), {}, r"`model` must be an nn\.Module"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_errors_say_what_to_do(case):
    """Bad input gets one readable line that names the argument and the rule."""
    kind, positional, named, message = ERRORS[case]
    with pytest.raises(kind, match=f"^jacobian_spectrum: {message}") as caught:
        jacobian_spectrum(*positional(), **named)
    assert "\n" not in str(caught.value)
