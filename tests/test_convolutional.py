"""The paper's convolutional nets: counts, shapes, what closed gates and lesions leave, the authors' initial weights."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from flowstudy import cifar_conv_net, fitnet, gate_activity, gradient_flow, jacobian_spectrum, lesion, mnist_conv_net
from flowstudy.nets import ConvNet, HighwayBlock, PlainBlock, convolutional, initialize_as_authors

NETS = {
    "mnist 16": (mnist_conv_net, 9, 38_986, (1, 28, 28)),
    "mnist 32": (lambda block="highway": mnist_conv_net(32, block), 9, 151_690, (1, 28, 28)),
    "cifar 10": (lambda block="highway": cifar_conv_net(10, block), 18, 2_256_838, (3, 32, 32)),
    "cifar 100": (lambda block="highway": cifar_conv_net(100, block), 18, 2_265_928, (3, 32, 32)),
    "A": (lambda block="highway": fitnet("A", block), 10, 236_328, (3, 32, 32)),
    "B": (lambda block="highway": fitnet("B", block), 18, 2_312_438, (3, 32, 32)),
    "C": (lambda block="highway": fitnet("C", block), 31, 1_251_798, (3, 32, 32)),
}
ALL = pytest.mark.parametrize("name", NETS)


def build(name: str, block: str = "highway") -> ConvNet:
    make = NETS[name][0]
    return initialize_as_authors(make() if block == "highway" else make(block=block), seed=3).eval()


def images(name: str, samples: int = 2) -> Tensor:
    return torch.rand(samples, *NETS[name][3], generator=torch.Generator().manual_seed(0))


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- structure -------------------------------------------------------------------------------------------------------


@ALL
def test_counts_are_the_papers(name):
    """Exact numbers of parameters; hidden layers are the paper's layers less the read-out."""
    net, (_, depth, parameters, _) = build(name), NETS[name]
    assert (count(net), net.depth) == (parameters, depth)


@ALL
def test_plain_twins_are_plain_and_as_large(name):
    """As deep, no gates, read-out and dropout alike; the count within half a channel of every highway stage."""
    highway, plain = build(name), build(name, "plain")
    assert all(type(layer) is PlainBlock for layer in plain.hidden_layers) and plain.depth == highway.depth
    assert [repr(m) for m in plain.body if isinstance(m, nn.Dropout)] == [
        repr(m) for m in highway.body if isinstance(m, nn.Dropout)]
    half_a_channel = sum(3 * layer.affine.weight[0].numel() for layer in plain.hidden_layers
                         if isinstance(layer.affine, nn.Conv2d)) / 2  # one more out, one more in, the next read-out's
    assert abs(count(plain) - count(highway)) < half_a_channel


@ALL
def test_parameters_are_counted_before_a_net_is_made(name, monkeypatch):
    """The count of a plan is that of its net, with gates and as the plain twin."""
    twins, plain_twin = [], convolutional.plain_twin

    def recorded(*given: object) -> list[object]:
        twins.append((given, plain_twin(*given)))
        return twins[-1][1]

    monkeypatch.setattr(convolutional, "plain_twin", recorded)
    with torch.device("meta"):  # no weight is drawn
        highway, plain = NETS[name][0](), NETS[name][0](block="plain")
    [((plan, *given), twin)] = twins
    assert convolutional.count(plan, *given, highway=True) == count(highway)
    assert convolutional.count(twin, *given, highway=False) == count(plain)


@pytest.mark.parametrize("width", [16, 32])
def test_no_other_width_makes_the_plain_mnist_net_nearer(width):
    """By arithmetic: 26 w of the 5 x 5 layer, 8 (9 w^2 + w) of the 3 x 3 ones, 90 w + 10 of the read-out."""
    target = count(mnist_conv_net(width))
    best = min(range(1, 100), key=lambda w: abs(26 * w + 8 * (9 * w * w + w) + 90 * w + 10 - target))
    net = mnist_conv_net(width, "plain")
    assert {layer.affine.out_channels for layer in net.hidden_layers} == {best}


def output_shapes(net: ConvNet, x: Tensor) -> list[tuple[int, ...]]:
    shapes = []
    for layer in net.hidden_layers:
        layer.register_forward_hook(lambda _module, _args, output: shapes.append(tuple(output.shape[1:])))
    shapes.append(tuple(net(x).shape[1:]))
    return shapes


@pytest.mark.parametrize("name, expected", {
    "mnist 16": [(16, 24, 24)] * 3 + [(16, 12, 12)] * 3 + [(16, 6, 6)] * 3 + [(10,)],
    "cifar 10": [(32, 32, 32)] * 5 + [(80, 16, 16)] * 6 + [(128, 8, 8)] * 6 + [(100, 8, 8), (10,)],
    "A": [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3 + [(250,), (10,)],
    "C": [(24, 32, 32)] * 10 + [(48, 16, 16)] * 10 + [(96, 8, 8)] * 10 + [(100,), (10,)],
}.items())
def test_shapes_of_every_layer(name, expected):
    """As the authors' log and the paper have them; pools halve between stages."""
    assert output_shapes(build(name), images(name)) == expected


def slow_layer(layer: nn.Module, x: Tensor, padding: int) -> Tensor:
    weight, bias = layer.affine.weight, layer.affine.bias
    if isinstance(layer, PlainBlock):
        return F.relu(F.conv2d(x, weight, bias, padding=padding))
    (w_h, w_t), (b_h, b_t) = weight.chunk(2), bias.chunk(2)
    t = torch.sigmoid(F.conv2d(x, w_t, b_t, padding=padding))
    return F.relu(F.conv2d(x, w_h, b_h, padding=padding)) * t + x * (1 - t)


@pytest.mark.parametrize("block", ["highway", "plain"])
def test_mnist_net_is_the_authors_file_written_out(block):
    """mnist_network.prototxt, layer by layer, as a slow twin: y = H T + x (1 - T) with separate convolutions."""
    net = build("mnist 16", block).double()
    x = images("mnist 16").double()
    layers = iter(net.hidden_layers)
    h = slow_layer(next(layers), x, padding=0)
    for depth, pool in ((2, (3, 2)), (3, (3, 2)), (3, (2, 2))):
        for _ in range(depth):
            h = slow_layer(next(layers), h, padding=1)
        h = F.max_pool2d(h, *pool, ceil_mode=True)
    assert_close(net(x), F.linear(h.flatten(1), net.readout.weight, net.readout.bias), rtol=1e-12, atol=1e-12)
    assert [m.p for m in net.body if isinstance(m, nn.Dropout)] == [0.2, 0.3, 0.4, 0.5]


# --- gates -----------------------------------------------------------------------------------------------------------


@ALL
def test_closed_gates_leave_the_plain_layers_alone(name):
    """T = 0 everywhere: to the last bit the net without its highway layers."""
    net, x = build(name), images(name)
    net.set_gate_bias(-torch.inf)
    rest = nn.Sequential(*(m for m in net.body if not isinstance(m, HighwayBlock)), nn.Flatten(), net.readout)
    assert torch.equal(net(x), rest(x))


@pytest.mark.parametrize("name", ["mnist 16", "A", "C"])
def test_closed_stage_has_the_identity_as_jacobian(name):
    """T = 0: the highway layers of a stage, one after the other, have exactly I as their Jacobian."""
    net = build(name)
    net.set_gate_bias(-torch.inf)
    channels = net.hidden_layers[1].affine.in_channels
    stage = nn.Sequential(*(layer for layer in net.hidden_layers
                            if isinstance(layer, HighwayBlock) and layer.affine.in_channels == channels))
    x = torch.randn(channels, 3, 2)
    jacobian = torch.func.jacrev(lambda flat: stage(flat.view(1, *x.shape)).flatten())(x.flatten())
    assert torch.equal(jacobian, torch.eye(x.numel()))


@pytest.mark.parametrize("name", ["mnist 16", "C"])
def test_lesioning_a_layer_is_removing_it(name):
    """To the last bit, for every highway layer; layers are numbered as the paper does, plain ones included."""
    net, x = build(name), images(name)
    intact = net(x)
    for number, layer in enumerate(net.hidden_layers, 1):
        if isinstance(layer, HighwayBlock):
            without = nn.Sequential(*(m for m in net.body if m is not layer), nn.Flatten(), net.readout)
            with lesion(net, number):
                lesioned = net(x)
            assert torch.equal(lesioned, without(x)) and not torch.equal(lesioned, intact)
    with pytest.raises(ValueError, match=r"got 1, a PlainBlock, which has no gate"), lesion(net, 1):
        pass


# --- measurements take them as they are ------------------------------------------------------------------------------


def test_measurements_know_the_layers():
    """Flow and gates count layers alike; a pixel's gradient at start is what autograd says."""
    net, x = build("mnist 16"), images("mnist 16", 6)
    y = torch.arange(6)
    flow, gates = gradient_flow(net, x, y), gate_activity(net, x, y)
    assert flow.frame["layer"].tolist() == list(range(1, 10))
    assert flow.frame["parameters"].sum() + count(net.readout) == count(net)
    assert gates.frame.groupby("layer")["unit"].count().to_dict() == dict.fromkeys(range(2, 10), 16)
    assert (gates.frame["gate_bias"] == -1).all()
    twin = build("mnist 16").double()
    F.cross_entropy(twin(x.double()), y).backward()
    norms = [layer.affine.weight.grad.norm().log10().item() for layer in twin.hidden_layers]
    assert_close(torch.tensor(flow.frame["log10_weight_gradient_norm"].to_numpy()),
                 torch.tensor(norms, dtype=torch.float64), rtol=0, atol=1e-10)


def test_spectrum_is_the_written_out_jacobians():
    """Input to output, 10 x 784: singular values of the Jacobian by autograd, 1e-10 of the largest."""
    net, x = build("mnist 16"), images("mnist 16", 1)
    spectrum = jacobian_spectrum(net, x)
    jacobian = torch.func.jacrev(net.double())(x.double()).reshape(10, 784)
    s = torch.linalg.svdvals(jacobian)
    assert_close(torch.as_tensor(spectrum.log_singular_values)[0].exp(), s, rtol=0, atol=1e-10 * s[0].item())


# --- initial weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, first, readout", [("mnist 16", None, 0.1), ("cifar 10", 1.0, 0.05),
                                                  ("cifar 100", 1.0, None), ("B", None, 0.05)])
def test_initial_weights_are_the_authors(name, first, readout):
    """Standard deviations of H's, T's, the first layer's and the read-out's weights (He's, or as their files say), each
    within 4 standard errors, 1 / sqrt(2 n) of itself; biases 0, gate biases as before."""
    net = build(name)
    weights = [(net.hidden_layers[0].affine.weight, first), (net.readout.weight, readout)]
    for layer in net.hidden_layers[1:]:
        halves = layer.affine.weight.chunk(2) if isinstance(layer, HighwayBlock) else (layer.affine.weight,)
        weights += [(half, None) for half in halves]
        assert not layer.affine.bias.chunk(2)[0].any()
    for weight, std in weights:
        ratio = weight.double().square().mean().sqrt().item() / (std or math.sqrt(2 / weight[0].numel()))
        assert abs(ratio - 1) < 4 / math.sqrt(2 * weight.numel())
    assert len({value for bias in net.gate_biases for value in bias.tolist()}) == 1


def test_a_seed_means_the_same_weights():
    one, same, other = (initialize_as_authors(mnist_conv_net(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.readout.weight, other.readout.weight)


@pytest.mark.parametrize("call, message", [
    (lambda: mnist_conv_net(0), r"mnist_conv_net: `width` must be an integer of at least 1, got 0"),
    (lambda: cifar_conv_net(10, "residual"), r"cifar_conv_net: `block` must be one of highway, plain, got 'residual'"),
    (lambda: fitnet("D"), r"fitnet: `name` must be one of A, B, C, thin_A, got 'D'"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
