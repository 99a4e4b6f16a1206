"""Verdicts on nets of other people's kinds whose outcome is known: branches, tables of positions, norms, zero heads."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flowstudy as fs
from flowstudy.measure.gradients.verdict import ROOM, THRESHOLD

ROUNDING = 1e-10  # of a few dozen float64 products, in log10


def labels(samples: int, classes: int = 10) -> Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(2))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def chain(layers: int, width: int = 64, activation: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    return [part for _ in range(layers) for part in (nn.Linear(width, width), activation())]


# --- cut off, and what only looks like it ----------------------------------------------------------------------------


class Encoded(nn.Module):
    """An encoder whose output is detached, or computed without gradients, in front of a head."""

    def __init__(self, head: int, how: str = "detach"):
        super().__init__()
        self.encoder, self.how = nn.Sequential(*chain(2)), how
        self.head = nn.Sequential(*chain(head - 1), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.how != "no_grad"):
            h = self.encoder(x)
        return self.head(h.detach() if self.how == "detach" else h)


@pytest.mark.parametrize("how", ["detach", "no_grad"])
@pytest.mark.parametrize("head", [1, 4])
def test_a_trainable_layer_without_a_gradient_is_cut_off(how, head):
    """Autograd leaves the encoder's gradients None: both layers are named, the first one first."""
    verdict = fs.gradient_flow(Encoded(head, how), drawn(32, 64), labels(32)).verdict
    assert (verdict.kind, verdict.layer) == ("cut off", 1)
    assert "encoder.0 (layer 1), encoder.2 (layer 2)." in verdict.sentence and "detach()" in verdict.advice


@pytest.mark.parametrize("head, kind", [(1, "cannot tell"), (4, "stable")])
def test_layers_frozen_on_purpose_are_not_cut_off(head, kind):
    """The head alone is read; of a linear probe there is one layer to see, and that is no comparison."""
    model = Encoded(head, "no_grad")
    model.encoder.requires_grad_(False)
    flow = fs.gradient_flow(fs.initialize(model, "he_normal"), drawn(32, 64), labels(32))
    assert flow.verdict.kind == kind
    assert flow.frame["trainable"].tolist() == [False] * 2 + [True] * head
    assert flow.path["layer"].tolist() == list(range(3, 3 + head))


class LowRank(nn.Module):
    """A frozen layer and a correction to it of rank 4, which is 0 at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        nn.init.kaiming_normal_(self.base.weight)
        self.down, self.up = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_a_correction_that_starts_at_zero_beside_frozen_layers_is_stable():
    parts = [part for _ in range(6) for part in (LowRank(64), nn.ReLU())]
    assert fs.gradient_flow(nn.Sequential(*parts), drawn(32, 64), labels(32, 64)).verdict.kind == "stable"


def test_one_layer_is_no_comparison():
    verdict = fs.gradient_flow(nn.Linear(64, 10), drawn(32, 64), labels(32)).verdict
    assert verdict.kind == "cannot tell" and "the loss sees one layer only" in verdict.sentence


# --- the main path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [fs.PlainNet, fs.ResidualNet, fs.HighwayNet])
def test_all_layers_of_our_nets_are_on_the_path(build):
    """Every block's output is a cut: the path is the frame, to the last bit."""
    flow = fs.gradient_flow(fs.initialize(build(64, 20, 9), "he_normal"), drawn(8, 64), labels(8))
    assert flow.frame["main_path"].all()
    for column in ("layer", "log10_error_signal_norm", "activation_mean_square"):
        assert (flow.path[column] == flow.frame[column]).all()
    assert (flow.path["log10_signal"] == flow.path["log10_error_signal_norm"]).all()


class Stream(nn.Module):
    """x + branch(x), in a function or in modules; the branch's layers carry a part of the signal."""

    def __init__(self, blocks: int, width: int = 16):
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.up, self.down = (nn.ModuleList(nn.Linear(width, width) for _ in range(blocks)) for _ in range(2))

    def sums(self, x: Tensor) -> list[Tensor]:
        found = [self.stem(x)]
        for up, down in zip(self.up, self.down, strict=True):
            found.append(found[-1] + down(torch.relu(up(found[-1]))))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sums(x)[-1])


def test_of_residual_blocks_the_sums_are_the_path():
    """The rows are the sums' norms and sizes by plain autograd; layers inside the branches are beside the path."""
    model, x, y = Stream(5), drawn(8, 64), labels(8)
    flow = fs.gradient_flow(model, x, y)
    twin = model.double()
    sums = twin.sums(x.double())
    logits = twin.head(sums[-1])
    errors = torch.autograd.grad(F.cross_entropy(logits, y), [*sums, logits])
    assert flow.path["layer"].tolist() == [1, 3, 5, 7, 9, 11, 12]
    np.testing.assert_allclose(flow.path["log10_error_signal_norm"], [e.norm().log10().item() for e in errors],
                               rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(flow.path["activation_mean_square"],
                               [h.square().mean().item() for h in [*sums, logits]], rtol=ROUNDING)
    assert flow.frame["main_path"].tolist() == [True, *[False] * 10, True]


class Towers(nn.Module):
    """Two stacks of layers side by side from the input on."""

    def __init__(self, layers: int):
        super().__init__()
        self.one, self.other = (nn.Sequential(*chain(layers, activation=nn.Sigmoid)) for _ in range(2))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x), self.other(x)], 1))


def test_branches_that_begin_at_the_input_are_read_from_the_input_on():
    """Ten sigmoid layers lose the signal on both sides, though no layer but the head carries everything on."""
    flow = fs.gradient_flow(Towers(10), drawn(8, 64), labels(8))
    assert flow.path["layer"].tolist() == [0, 20, 21]
    assert flow.path["log10_error_signal_norm"][0] == pytest.approx(flow.log10_input_gradient_norm, abs=ROUNDING)
    assert (flow.verdict.kind, flow.verdict.layer) == ("vanishing", 1)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Embedding(32, 8), nn.Embedding(32, 8)

    def forward(self, t: Tensor) -> list[Tensor]:
        return [self.one(t), self.other(t)]


def test_where_nothing_carries_everything_on_it_cannot_tell():
    """Two tables side by side that only the loss joins: no guess."""
    t = torch.arange(8).view(4, 2)
    flow = fs.gradient_flow(Heads(), t, loss=lambda outputs, _: outputs[0].square().mean() + outputs[1].sum())
    assert flow.verdict.kind == "cannot tell" and "branches" in flow.verdict.sentence


class Gated(nn.Module):
    """Squeeze and excitation, as in EfficientNet, MobileNetV3 and RegNetY."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        return x + h * torch.sigmoid(self.up(torch.relu(self.down(h.mean((2, 3), keepdim=True)))))


def test_gates_are_beside_the_path():
    """The stream changes by less than a decade over 12 blocks; the gates' own averages are not discounted."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(Gated(16) for _ in range(12)), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(16, 10))
    flow = fs.gradient_flow(net, drawn(8, 3, 8, 8), labels(8))
    assert flow.verdict.kind == "stable" and len(flow.path) == 14
    assert flow.path["averaged_positions"].tolist() == [64.0] * 13 + [1.0]


class GPT(nn.Module):
    """Two tables that are summed, 12 pre-norm blocks; the positions once for all samples, or for each."""

    def __init__(self, batched: bool, first: str = "words"):
        super().__init__()
        self.words, self.places = nn.Embedding(32, 64), nn.Embedding(16, 64)
        self.batched, self.first = batched, first
        self.blocks = nn.ModuleList(nn.ModuleList([nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)])
                                    for _ in range(12))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 32, bias=False)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02 / (24**0.5 if name.endswith(".2.weight") else 1))

    def forward(self, t: Tensor) -> Tensor:
        at = torch.arange(t.shape[1])
        places = self.places(at[None].expand_as(t) if self.batched else at) if self.first == "places" else None
        x = self.words(t)
        x = x + (self.places(at[None].expand_as(t) if self.batched else at) if places is None else places)
        for norm, up, down in self.blocks:
            x = x + down(F.gelu(up(norm(x))))
        return self.head(self.norm(x)).transpose(1, 2)


@pytest.mark.parametrize("samples", [5, 16])  # 16 is the number of positions too
def test_how_positions_are_looked_up_changes_nothing(samples):
    """Four programs of one function: the path is the same, from the sum of the tables on."""
    t = torch.randint(32, (samples, 16), generator=torch.Generator().manual_seed(0))
    paths = []
    for batched in (False, True):
        for first in ("words", "places"):
            torch.manual_seed(0)
            flow = fs.gradient_flow(GPT(batched, first), t, t.roll(-1, 1))
            assert flow.verdict.kind == "stable"
            paths.append(flow.path)
    for path in paths[1:]:
        np.testing.assert_allclose(path, paths[0], rtol=ROUNDING)
    assert paths[0]["layer"].tolist()[:2] == [2, 5]


def test_of_a_frozen_table_the_path_begins_at_the_other_one():
    """The words' table asks for no gradient: the positions', which all samples share, is the first value."""
    model, t = GPT(batched=False), torch.arange(80).view(5, 16) % 32
    free = fs.gradient_flow(model, t, t.roll(-1, 1))
    model.words.requires_grad_(False)
    flow = fs.gradient_flow(model, t, t.roll(-1, 1))
    assert flow.path["layer"].tolist() == free.path["layer"].tolist() and flow.verdict.kind == "stable"
    np.testing.assert_allclose(flow.path[1:], free.path[1:], rtol=ROUNDING)


# --- averages --------------------------------------------------------------------------------------------------------


class Averaged(nn.Module):
    def __init__(self, average: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(6, 6, 1, bias=False) for _ in range(4)))
        self.average, self.head = average, nn.Linear(6, 6, bias=False)
        self.double()
        for layer in (*self.layers, self.head):
            nn.init.orthogonal_(layer.weight.data.view(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.average(self.layers(x)))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


AVERAGES = {
    "mean": Mean(),
    "adaptive, to 1": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "adaptive, to 2, then mean": nn.Sequential(nn.AdaptiveAvgPool2d(2), Mean()),
    "windows, then mean": nn.Sequential(nn.AvgPool2d(2), Mean()),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_what_averages_over_positions_is_discounted_exactly(name):
    """Isometries of 6 channels at 64 pixels, and an average: the signal is the same everywhere, to rounding."""
    flow = fs.gradient_flow(Averaged(AVERAGES[name]), drawn(8, 6, 8, 8), labels(8, 6))
    assert flow.path["averaged_positions"].tolist() == [64.0] * 4 + [1.0]
    np.testing.assert_allclose(flow.path["log10_signal"], flow.path["log10_signal"].iloc[-1], rtol=0, atol=ROUNDING)
    assert abs(flow.slope) < 100 * ROUNDING


def shrinking(layer: type[nn.Module]) -> nn.Module:
    """Sigmoid layers each of which leaves fewer pixels."""
    convolutions = [nn.Conv2d(1 if i == 0 else 16, 16, 3) for i in range(12)]
    return nn.Sequential(*(part for conv in convolutions for part in (conv, layer())), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, 10))


def test_a_signal_lost_while_images_shrink_is_lost():
    """12 unpadded sigmoid layers: 10.8 decades; the one average of 16 pixels is a factor 4 of that, and known."""
    flow = fs.gradient_flow(shrinking(nn.Sigmoid), drawn(32, 1, 28, 28), labels(32))
    error = flow.frame["log10_error_signal_norm"]
    assert flow.verdict.kind == "vanishing"
    assert flow.verdict.decades == pytest.approx(error.iloc[0] - error.iloc[-1] + math.log10(4), abs=ROUNDING)


def test_max_pooling_and_strides_are_not_discounted():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Flatten(),
                        nn.Linear(8, 10))
    flow = fs.gradient_flow(net, drawn(4, 3, 16, 16)[:, :, :15, :15], labels(4))
    assert (flow.path["averaged_positions"] == 1).all()


# --- nothing yet, and nothing at all ---------------------------------------------------------------------------------


def test_a_head_that_starts_at_zero_is_not_dead():
    """Its own gradient is not 0: the signal is there after one step, and stable after 30."""
    net, x, y = nn.Sequential(*chain(2), nn.Linear(64, 10)), drawn(200, 64), labels(200)
    nn.init.zeros_(net[4].weight)
    before = fs.gradient_flow(net, x, y).verdict
    assert before.kind == "cannot tell" and "the weights of 4 (layer 3) are exactly 0" in before.sentence
    optimizer, after = torch.optim.SGD(net.parameters(), 0.3), []
    for _ in range(30):
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after.append(fs.gradient_flow(net, x, y))
    assert np.isfinite(after[0].frame["log10_error_signal_norm"]).all()
    assert after[-1].verdict.kind == "stable"


def test_two_layers_of_zeros_in_a_row_are_dead():
    """Neither's weights get a gradient: no step changes that."""
    net = nn.Sequential(*chain(2), nn.Linear(64, 64), nn.Linear(64, 10))
    for layer in (net[4], net[5]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert fs.gradient_flow(net, drawn(32, 64), labels(32)).verdict.kind == "dead"


def test_branches_that_start_at_zero_leave_the_stream_as_it_is():
    model = Stream(8)
    for layer in model.down:
        nn.init.zeros_(layer.weight)
    flow = fs.gradient_flow(model, drawn(8, 64), labels(8))
    assert flow.verdict.kind == "stable"
    assert flow.path["log10_error_signal_norm"][:-1].nunique() == 1


# --- scales ----------------------------------------------------------------------------------------------------------


def with_batch_norm(gain: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    parts = [part for _ in range(20) for part in (nn.Linear(64, 64), nn.BatchNorm1d(64, eps=1e-20), nn.ReLU())]
    net = nn.Sequential(*parts, nn.Linear(64, 10)).double()
    with torch.no_grad():
        for layer in parts[::3]:
            layer.weight.mul_(gain)
    return net


def test_scales_in_front_of_batch_norm_change_nothing():
    """Weights times 1/10 and inputs times 1/255 and 255, biases as they were: the same path, to rounding."""
    x, y = drawn(100, 64).double(), labels(100)
    true = fs.gradient_flow(with_batch_norm(), x, y)
    assert true.verdict.kind == "stable" and len(true.path) == 21
    for gain, scale in ((0.1, 1.0), (1.0, 1 / 255), (1.0, 255.0)):
        flow = fs.gradient_flow(with_batch_norm(gain), x * scale, y)
        np.testing.assert_allclose(flow.path["log10_signal"], true.path["log10_signal"], rtol=0, atol=1e-8)
        assert flow.verdict.kind == "stable" and "root mean square" not in flow.verdict.sentence


def test_evaluation_mode_is_another_net():
    """Said where there are running statistics, and only in evaluation mode."""
    x, y = drawn(100, 64), labels(100)
    words = "Measured in evaluation mode, where 20 batch norm layers divide by running statistics"
    assert words in fs.gradient_flow(with_batch_norm().eval(), x, y).verdict.sentence
    assert words not in fs.gradient_flow(with_batch_norm(), x, y).verdict.sentence
    assert "Measured" not in fs.gradient_flow(nn.Sequential(*chain(3)).eval(), x, y).verdict.sentence


@pytest.mark.parametrize("scale, word", [(1.0, None), (1 / 255, "smaller"), (255.0, "larger")])
def test_inputs_of_another_scale_are_named(scale, word):
    """Nothing but the first layer's gradient shows it: the signal is as it was."""
    net = fs.initialize(nn.Sequential(*chain(7), nn.Linear(64, 10)), "he_normal")
    sentence = fs.gradient_flow(net, drawn(100, 64) * scale, labels(100)).verdict.sentence
    assert sentence.startswith("stable")
    assert ("root mean square" in sentence) == (word is not None)
    assert word is None or f"gradients that much {word}" in sentence


# --- nets that train -------------------------------------------------------------------------------------------------


def vgg() -> nn.Module:
    parts, channels = [], 1
    for width in (8, 8, 0, 16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 64, 64, 64, 0):
        parts += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()] if width else \
                 [nn.MaxPool2d(2)]
        channels = width or channels
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 10))


def test_vgg_with_batch_norm_is_stable():
    """13 convolutions and five poolings, which training mode carries the signal through."""
    assert fs.gradient_flow(vgg(), drawn(32, 1, 32, 32), labels(32)).verdict.kind == "stable"


def test_signal_and_activations_that_shrink_together_have_more_room():
    """Default nn.Linear with ReLU: the squared signal loses a factor 6 a layer, and the weights' gradients do not.

    Five layers lose more than the threshold, and train; twelve lose more than the room above it.
    """
    def flow(layers: int) -> fs.GradientFlow:
        torch.manual_seed(0)
        return fs.gradient_flow(nn.Sequential(*chain(layers - 1, 100), nn.Linear(100, 10)), drawn(100, 100),
                                labels(100))
    five, twelve = flow(5), flow(12)
    assert -ROOM * THRESHOLD < 2 * math.log(10) * five.verdict.decades < -THRESHOLD
    assert five.verdict.kind == "stable" and "shrink along with it" in five.verdict.sentence
    assert np.ptp(five.frame["log10_weight_gradient_norm"]) < 1
    assert twelve.verdict.kind == "vanishing"
