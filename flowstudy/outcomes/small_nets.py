"""The nets of the study: six families, 3 to 40 layers deep, each architecture from three starts.

A start is a factor on the standard deviation of the hidden weights, and of highway nets a gate bias.  Weights are He's
normal ones where ReLU or GELU follows, LeCun's where tanh does; biases are 0.  Images are square and have one channel.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.nets import ACTIVATIONS, HighwayNet, PlainNet, ResidualNet, initialize

MAP = "highway map"  # the family of `highway_map`
WIDTH, CHANNELS, TOKEN_WIDTH, HEADS = 24, 8, 16, 2
SCALES, BRANCH_SCALES, GATE_BIASES = (0.7, 1.0, 1.4), (0.1, 0.3, 1.0), (-1.0, -3.0, -5.0)
MAP_DEPTHS, MAP_BIASES = (10, 20, 40), (0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0)


@dataclass(frozen=True)
class Architecture:
    """What nets of several starts have in common.

    Attributes:
        family: plain, highway, residual, normed, convolutional, transformer; or `MAP`.
        kind: of that family; `layer` and `batch` are the norm, `pre`, `post` and `none` where a transformer's norm is.
        activation, depth: depth counts layers, of transformers blocks.
        starts: the initial scales or gate biases.
    """

    family: str
    kind: str
    activation: str
    depth: int
    starts: tuple[float, ...]

    @property
    def name(self) -> str:
        return " ".join(f"{self.family} {self.kind} {self.activation} {self.depth}".split())

    def net(self, side: int, classes: int, start: float, seed: int) -> nn.Module:
        """For images of side x side pixels, its initial weights drawn."""
        net = KINDS[self.family](self, side, classes, start)
        initialize(net, "he_normal" if self.activation in ("relu", "gelu") else "lecun_normal", seed=seed)
        if not self.family.startswith("highway"):
            with torch.no_grad():
                for weight in hidden_weights(net):
                    weight.mul_(start)
        return net


def small_nets() -> list[Architecture]:
    """34 architectures of three starts each."""
    several = [
        ("plain", ("",), ("relu", "tanh"), (3, 10, 20, 40), SCALES),
        ("highway", ("",), ("relu", "tanh"), (3, 10, 20, 40), GATE_BIASES),
        ("residual", ("",), ("relu",), (10, 20, 40), BRANCH_SCALES),
        ("normed", ("layer", "batch"), ("relu",), (10, 20, 40), BRANCH_SCALES),
        ("convolutional", ("plain", "residual"), ("relu",), (3, 10, 20), SCALES),
        ("transformer", ("pre", "post", "none"), ("gelu",), (3,), BRANCH_SCALES),
    ]
    return [Architecture(family, kind, activation, depth, starts)
            for family, kinds, activations, depths, starts in several
            for kind in kinds for activation in activations for depth in depths]


def highway_map() -> list[Architecture]:
    """Highway tanh nets by depth and gate bias, finer than among `small_nets`: where the edge of training runs."""
    return [Architecture(MAP, "", "tanh", depth, MAP_BIASES) for depth in MAP_DEPTHS]


def hidden_weights(net: nn.Module) -> Iterator[Tensor]:
    """Matrices between the input layer and the read-out."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return (layer.weight for layer in layers[1:-1])


# --- the families that `flowstudy.nets` does not have ----------------------------------------------------------------


class BatchStatistics(nn.Module):
    """Batch norm by the batch's own mean and variance alone: nothing is learnt or kept."""

    def forward(self, h: Float[Tensor, "sample unit"]) -> Tensor:
        return F.batch_norm(h, None, None, training=True)


class NormedNet(nn.Module):
    """A plain net with a norm before each hidden activation."""

    def __init__(self, features: int, classes: int, kind: str, activation: str, depth: int):
        super().__init__()
        self.activation = activation
        self.input = nn.Linear(features, WIDTH)
        self.body = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth - 1))
        self.norms = nn.ModuleList(BatchStatistics() if kind == "batch" else nn.LayerNorm(WIDTH) for _ in range(depth))
        self.readout = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        for layer, norm in zip([self.input, *self.body], self.norms, strict=True):
            h = ACTIVATIONS[self.activation](norm(layer(h)))
        return self.readout(h)


class SmallConvNet(nn.Module):
    """2 x 2 patches, 3 x 3 convolutions with or without skips, the mean over pixels, a read-out."""

    def __init__(self, classes: int, kind: str, activation: str, depth: int):
        super().__init__()
        self.residual, self.activation = kind == "residual", activation
        self.input = nn.Conv2d(1, CHANNELS, 2, stride=2)
        self.body = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(depth - 1))
        self.readout = nn.Linear(CHANNELS, classes)

    def forward(self, x: Float[Tensor, "sample 1 row column"]) -> Tensor:
        act = ACTIVATIONS[self.activation]
        h = act(self.input(x))
        for layer in self.body:
            h = h + act(layer(h)) if self.residual else act(layer(h))
        return self.readout(h.mean((-2, -1)))


class SmallTransformer(nn.Module):
    """An image's rows are its tokens."""

    def __init__(self, side: int, classes: int, kind: str, depth: int):
        super().__init__()
        self.input = nn.Linear(side, TOKEN_WIDTH)
        self.position = nn.Parameter(torch.linspace(-1, 1, side).unsqueeze(1).repeat(1, TOKEN_WIDTH))
        self.blocks = nn.ModuleList(TransformerBlock(kind) for _ in range(depth))
        self.norm = nn.LayerNorm(TOKEN_WIDTH) if kind == "pre" else nn.Identity()
        self.readout = nn.Linear(TOKEN_WIDTH, classes)

    def forward(self, x: Float[Tensor, "sample 1 row column"]) -> Tensor:
        h = self.input(x.squeeze(1)) + self.position
        for block in self.blocks:
            h = block(h)
        return self.readout(self.norm(h).mean(1))


class TransformerBlock(nn.Module):
    """Attention, then two layers for each token; the norm stands before each part, after each sum, or nowhere."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.queries_keys_values = nn.Linear(TOKEN_WIDTH, 3 * TOKEN_WIDTH)
        self.mixed = nn.Linear(TOKEN_WIDTH, TOKEN_WIDTH)
        self.up, self.down = nn.Linear(TOKEN_WIDTH, 2 * TOKEN_WIDTH), nn.Linear(2 * TOKEN_WIDTH, TOKEN_WIDTH)
        self.norms = nn.ModuleList(nn.Identity() if kind == "none" else nn.LayerNorm(TOKEN_WIDTH) for _ in range(2))

    def forward(self, h: Float[Tensor, "sample token unit"]) -> Tensor:
        for norm, part in zip(self.norms, (self.attention, lambda z: self.down(F.gelu(self.up(z)))), strict=True):
            h = norm(h + part(h)) if self.kind == "post" else h + part(norm(h))
        return h

    def attention(self, h: Float[Tensor, "sample token unit"]) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(-3, -2)
                   for part in self.queries_keys_values(h).chunk(3, -1))
        weights = torch.softmax(q @ k.mT / math.sqrt(TOKEN_WIDTH // HEADS), -1)
        return self.mixed((weights @ v).transpose(-3, -2).flatten(-2))


def fully_connected(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def built(a: Architecture, side: int, classes: int, start: float) -> nn.Module:
        gate_bias = {"gate_bias": start} if make is HighwayNet else {}
        return nn.Sequential(nn.Flatten(), make(side**2, WIDTH, a.depth, classes, a.activation, **gate_bias))

    return built


KINDS: dict[str, Callable[[Architecture, int, int, float], nn.Module]] = {
    "plain": fully_connected(PlainNet), "highway": fully_connected(HighwayNet),
    "residual": fully_connected(ResidualNet), MAP: fully_connected(HighwayNet),
    "normed": lambda a, side, classes, start: NormedNet(side**2, classes, a.kind, a.activation, a.depth),
    "convolutional": lambda a, side, classes, start: SmallConvNet(classes, a.kind, a.activation, a.depth),
    "transformer": lambda a, side, classes, start: SmallTransformer(side, classes, a.kind, a.depth),
}
FAMILIES = tuple(kind for kind in KINDS if kind != MAP)


def chosen_nets(families: Sequence[str]) -> list[Architecture]:
    return [a for a in small_nets() + highway_map() if a.family in families]
