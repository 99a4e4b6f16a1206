"""Nets whose training is known: fully connected, convolutional, transformers, with weights as they were when trained.

The outcomes are a table with a row a net: `cls`, `family`, `activation`, `depth`, `init`, `extra` say which, the rest
what became of it.  Data: the first 20,000 digits of MNIST at 14 x 14, their mean and variance 0 and 1.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.data import load_dataset

CLASSES, PIXELS, TRAINED_ON = 10, 14, 20_000
WEIGHT_SEED, KERNEL_SEED, KERNEL_SAMPLES = 3, 9, 48
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "tanh": torch.tanh, "gelu": F.gelu, "sigmoid": torch.sigmoid}
Recipe = tuple[str, float | None]  # scheme, and a factor on the weights (of highway nets: the gate bias)


def small_digits() -> tuple[Float[Tensor, "sample 14 14"], Int64[Tensor, " sample"]]:
    """Grey values averaged over 2 x 2 pixels and rounded, as integers, then standardised."""
    data = load_dataset("mnist", download=False)
    pixels = (data.x_train[:TRAINED_ON, 0] * 255).round()
    x = pixels.reshape(-1, PIXELS, 2, PIXELS, 2).mean((2, 4)).round().div(255)
    return (x - x.mean()) / x.std(), data.y_train[:TRAINED_ON]


def kernel_samples() -> Int64[Tensor, " sample"]:
    """Those on which the loss at the start was taken."""
    return torch.randperm(TRAINED_ON, generator=torch.Generator().manual_seed(KERNEL_SEED))[:KERNEL_SAMPLES]


# --- the nets --------------------------------------------------------------------------------------------------------


def batch_norm(h: Tensor) -> Tensor:
    """By this batch's own mean and variance, per channel; nothing is learnt or kept."""
    return F.batch_norm(h, None, None, training=True)


def sample_norm(h: Tensor) -> Tensor:
    """Each sample by its own mean and variance."""
    return F.layer_norm(h, h.shape[1:])


def token_norm(h: Tensor) -> Tensor:
    """Each token by its own mean and variance."""
    return F.layer_norm(h, h.shape[-1:])


class FullyConnected(nn.Module):
    """`family`: plain, highway, residual, ln (LayerNorm) or bn (BatchNorm), both before the activation."""

    def __init__(self, family: str, activation: str, depth: int, width: int = 50):
        super().__init__()
        self.family, self.activation = family, ACTIVATIONS[activation]
        self.norm = {"bn": batch_norm, "ln": sample_norm}.get(family, lambda h: h)
        self.input = nn.Linear(PIXELS**2, width)
        out = 2 * width if family == "highway" else width
        self.body = nn.ModuleList(nn.Linear(width, out) for _ in range(depth - 1))
        self.readout = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm(self.input(x.flatten(1))))
        for layer in self.body:
            h = self.block(layer(h), h)
        return self.readout(h)

    def block(self, pre: Tensor, h: Tensor) -> Tensor:
        if self.family == "highway":
            pre, gate = pre.chunk(2, -1)
            return h + torch.sigmoid(gate) * (self.activation(pre) - h)
        new = self.activation(self.norm(pre))
        return h + new if self.family == "residual" else new

    def matrices(self) -> list[nn.Parameter]:
        """Between input and read-out, in the order in which they are drawn."""
        return [layer.weight for layer in self.body]


class Convolutional(nn.Module):
    """`family`: none, bn, gn (each sample by itself), res or res_bn; 3 x 3 on 7 x 7 pixels, then their mean."""

    def __init__(self, family: str, activation: str, depth: int, channels: int = 16):
        super().__init__()
        self.residual, self.activation = "res" in family, ACTIVATIONS[activation]
        self.norm = batch_norm if "bn" in family else sample_norm if "gn" in family else lambda h: h
        self.input = nn.Conv2d(1, channels, 2, stride=2)
        self.body = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth - 1))
        self.readout = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm(self.input(x.unsqueeze(1))))
        for layer in self.body:
            new = self.activation(self.norm(layer(h)))
            h = h + new if self.residual else new
        return self.readout(h.mean((2, 3)))

    def matrices(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self.body]


class Transformer(nn.Module):
    """`family`: pre or post (where the norm stands), none (no norm) or noskip; the 14 rows are the tokens."""

    def __init__(self, family: str, _activation: str, depth: int, width: int = 32):
        super().__init__()
        self.family = family
        self.input, self.position = nn.Linear(PIXELS, width), nn.Parameter(torch.zeros(PIXELS, width))
        self.blocks = nn.ModuleList(TransformerBlock(family, width) for _ in range(depth))
        self.readout = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.input(x) + self.position
        for block in self.blocks:
            h = block(h)
        return self.readout((token_norm(h) if self.family in ("pre", "noskip") else h).mean(1))

    def matrices(self) -> list[nn.Parameter]:
        return [getattr(block, name).weight for name in ("queries_keys_values", "mixed", "up", "down")
                for block in self.blocks]


class TransformerBlock(nn.Module):
    def __init__(self, family: str, width: int, heads: int = 2):
        super().__init__()
        self.family, self.heads = family, heads
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.mixed = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        for part in (self.attention, lambda z: self.down(F.gelu(self.up(z)))):
            if self.family == "post":
                h = token_norm(h + part(h))
            else:
                new = part(token_norm(h) if self.family in ("pre", "noskip") else h)
                h = new if self.family == "noskip" else h + new
        return h

    def attention(self, h: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for part in self.queries_keys_values(h).chunk(3, -1))
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        return self.mixed((weights @ v).transpose(1, 2).flatten(2))


KINDS: dict[str, Callable[[str, str, int], nn.Module]] = {
    "FC": FullyConnected, "Conv": Convolutional, "Former": Transformer}

# The recipes of a family draw from one generator, one after the other.
RECIPES: dict[tuple[str, str], list[Recipe]] = {
    ("FC", "plain"): [("glorot", None), ("he", None), ("orthogonal", None)],
    ("FC", "highway"): [("glorot", -1.0), ("glorot", -3.0), ("glorot", -5.0)],
    ("FC", "residual"): [("he", 1.0), ("he", 0.3), ("he", 0.1)],
    **{("FC", family): [("he", None), ("glorot", None), ("small", None)] for family in ("ln", "bn")},
    **{("Conv", family): [("glorot", 1.0), ("he", 1.0), ("default", 1.0)]
       for family in ("none", "bn", "gn", "res", "res_bn")},
    **{("Former", family): [("glorot", 1.0), ("small", 1.0), ("glorot", 2.0)]
       for family in ("pre", "post", "none", "noskip")},
}


# --- their weights ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_weights(net: nn.Module, recipe: Recipe, generator: torch.Generator) -> None:
    """In place; biases 0, of gates the recipe's."""
    scheme, extra = recipe
    is_highway = getattr(net, "family", "") == "highway"
    for module in net.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
    put(net.input.weight, normal(net.input.weight, generator) / math.sqrt(fans(net.input.weight)[0]))
    if isinstance(net, Transformer):
        net.position.copy_(torch.randn(net.position.shape, generator=generator) * 0.02)
    put(net.readout.weight, normal(net.readout.weight, generator) / math.sqrt(fans(net.readout.weight)[0]))
    for weight in net.matrices():
        drawn = hidden_matrix(weight, scheme, generator)
        put(weight, drawn * extra if extra and not is_highway and scheme != "orthogonal" else drawn)
    if is_highway:
        for layer in net.body:
            layer.bias[len(layer.bias) // 2:] = extra


def hidden_matrix(weight: Tensor, scheme: str, generator: torch.Generator) -> Float[Tensor, "in out"]:
    fan_in, fan_out = fans(weight)
    if scheme == "orthogonal":
        q, r = torch.linalg.qr(torch.randn(max(fan_in, fan_out), min(fan_in, fan_out), generator=generator))
        q = q * r.diagonal().sign()
        return q if fan_in >= fan_out else q.T
    if scheme == "small":
        return normal(weight, generator) * 0.02
    gain = {"glorot": math.sqrt(2 / (1 + fan_out / fan_in)), "he": math.sqrt(2), "default": 1 / math.sqrt(3)}[scheme]
    return normal(weight, generator) * (gain / math.sqrt(fan_in))


def fans(weight: Tensor) -> tuple[int, int]:
    return weight[0].numel(), len(weight)


def normal(weight: Tensor, generator: torch.Generator) -> Float[Tensor, "in out"]:
    return torch.randn(fans(weight), generator=generator)


def put(weight: Tensor, drawn: Float[Tensor, "in out"]) -> None:
    """Rows go by kernel row, column and channel where the weight is a convolution's."""
    if weight.ndim == 4:
        out, channels, height, width = weight.shape
        weight.copy_(drawn.view(height, width, channels, out).permute(3, 2, 0, 1))
    else:
        weight.copy_(drawn.T)


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownNet:
    """A net at its first weights, and its row in the table of outcomes."""

    net: nn.Module
    outcome: pd.Series

    @property
    def name(self) -> str:
        return " ".join(str(self.outcome[key]) for key in ("cls", "family", "activation", "depth", "init", "extra"))


def known_nets(outcomes: Path) -> Iterator[KnownNet]:
    """In the order of the table."""
    for _, row in pd.read_csv(outcomes).iterrows():
        recipe = row.init, None if pd.isna(row.extra) else float(row.extra)
        recipes = RECIPES[row.cls, row.family]
        net, generator = KINDS[row.cls](row.family, row.activation, row.depth), torch.Generator()
        generator.manual_seed(WEIGHT_SEED)
        for before in recipes[:recipes.index(recipe) + 1]:
            draw_weights(net, before, generator)
        yield KnownNet(net, row)
