"""The paper's convolutional highway nets, layer by layer, each with a plain twin of as many parameters."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowstudy.arguments import a_real, a_whole, check_one_of, instance_of, one_among, optional, several, takes

from .blocks import HighwayBlock, PlainBlock, check_positive_integer
from .initialize import initialize

BLOCKS = ("highway", "plain")


@dataclass(frozen=True)
class Conv:
    """A convolutional layer: highway where it keeps channels and size, else plain."""

    width: int
    kernel: int = 3
    padded: bool = True


@dataclass(frozen=True)
class Dense:
    """A fully connected plain layer, on all features of the layer before."""

    width: int


Shape = tuple[int, ...]  # of one sample: channels, height, width
Step = Conv | Dense | nn.Module  # modules without weights (dropout, pooling) stand for themselves


class ConvNet(nn.Module):
    """Convolutional layers with ReLU, dropout and pooling between them, a linear read-out; no normalisation.

    Attributes:
        block: "highway" or "plain".
        hidden_layers: the layers with weights in order, the read-out apart: what measurements call layer 1..depth.
        readout_std: standard deviation of the read-out's initial weights; None is the other layers' rule.
        first_std: that of the first layer's; None likewise.
    """

    block: str
    readout_std: float | None
    first_std: float | None
    body: nn.Sequential
    readout: nn.Linear

    @takes(plan=several(instance_of((Conv, Dense, nn.Module), "a Conv, a Dense or an nn.Module"), least=0),
           in_shape=several(a_whole(1)), classes=a_whole(1), block=one_among(BLOCKS), gate_bias=a_real("a number"),
           readout_std=optional(a_real("at least 0 and finite")), first_std=optional(a_real("at least 0 and finite")))
    def __init__(self, plan: Sequence[Step], in_shape: Shape, classes: int, block: str,
                 gate_bias: float, readout_std: float | None, first_std: float | None = None):
        super().__init__()
        self.block, self.readout_std, self.first_std = block, readout_std, first_std
        self.body = nn.Sequential(*modules_of(plan, in_shape, block == "highway", gate_bias))
        *_, (_, shape) = with_input_shapes(plan, in_shape)
        self.readout = nn.Linear(math.prod(shape), classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of images (sample, channel, height, width).

        Returns:
            (sample, classes).
        """
        return self.readout(self.body(x).flatten(1))

    @property
    def hidden_layers(self) -> list[nn.Module]:
        return [module for module in self.body if isinstance(module, PlainBlock | HighwayBlock)]

    @property
    def depth(self) -> int:
        return len(self.hidden_layers)

    @property
    def gate_biases(self) -> list[Tensor]:
        """b_T of each highway block, (channels,) each."""
        return [layer.gate_bias for layer in self.hidden_layers if isinstance(layer, HighwayBlock)]

    def set_gate_bias(self, value: float) -> None:
        """Set b_T of every channel of every highway block."""
        for layer in self.hidden_layers:
            if isinstance(layer, HighwayBlock):
                layer.set_gate_bias(value)


def mnist_conv_net(width: int = 16, block: str = "highway") -> ConvNet:
    """The net of the paper's table 1, for images 1 x 28 x 28: 9 hidden layers, b_T = -1.

    As in the authors' mnist_network.prototxt: 5 x 5 without padding (28 -> 24), 2 layers, pool (12), 3 layers,
    pool (6), 3 layers, pool (3), linear; dropout 0.2 on the input, then 0.3, 0.4 and 0.5 after the pools. Pooling is
    3 / 2 with the last window cut off by the border, as Caffe has it, then 2 / 2.

    Returns:
        A ConvNet; `initialize_as_authors` draws its weights.

    >>> sum(p.numel() for p in mnist_conv_net(16).parameters()), sum(p.numel() for p in mnist_conv_net(32).parameters())
    (38986, 151690)
    >>> sum(p.numel() for p in mnist_conv_net(16, block="plain").parameters())  # 22 channels, the nearest
    37586

    Args:
        width: channels of the highway net; 16 and 32 are the paper's.
        block: "highway" or "plain".
    """
    check_positive_integer("mnist_conv_net", width=width)
    plan = [nn.Dropout(0.2), Conv(width, 5, padded=False), *[Conv(width)] * 2, nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(0.3), *[Conv(width)] * 3, nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(0.4), *[Conv(width)] * 3, nn.MaxPool2d(2, 2), nn.Dropout(0.5)]
    return build("mnist_conv_net", plan, (1, 28, 28), 10, block, -1.0, readout_std=0.1)


def cifar_conv_net(classes: int = 10, block: str = "highway") -> ConvNet:
    """The 19-layer net of the paper's table 3, for images 3 x 32 x 32: stages of 32, 80, 128 channels, b_T = -2.

    As in the authors' cifar10_network.prototxt and cifar100_network.prototxt: the first layer of a stage is plain, a
    1 x 1 layer of 100 channels and the mean over positions come before the read-out; dropout 0.2 on the input, after
    both pools and before the read-out. The read-out starts at N(0, 0.05^2) for 10 classes, as the rest for 100, and the
    first layer at N(0, 1): the files give 0.05 as its `value`, which Caffe's Gaussian filler does not read. The loss
    before training in their log, 2.497 on the test set, agrees: ours is 2.41 to 3.04 (six seeds, contrast-normalised to
    norm 55), and from He's first layer 2.30 to 2.37.

    Returns:
        A ConvNet; `initialize_as_authors` draws its weights.

    >>> sum(p.numel() for p in cifar_conv_net().parameters()), sum(p.numel() for p in cifar_conv_net(100).parameters())
    (2256838, 2265928)
    """
    check_positive_integer("cifar_conv_net", classes=classes)
    plan = [nn.Dropout(0.2), *[Conv(32)] * 5, nn.MaxPool2d(2, 2), nn.Dropout(0.2), *[Conv(80)] * 6, nn.MaxPool2d(2, 2),
            nn.Dropout(0.2), *[Conv(128)] * 6, Conv(100, 1), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2)]
    return build("cifar_conv_net", plan, (3, 32, 32), classes, block, -2.0,
                 readout_std=0.05 if classes == 10 else None, first_std=1.0)


FITNETS = {  # channels of each stage's layers, kernels of the layers after its first, head, b_T
    "A": (([16] * 3, [32] * 3, [64] * 3), (3,), 250, -1.0),
    "B": (([32] * 5, [80] * 6, [128] * 6), (3,), 500, -2.0),
    "C": (([24] * 10, [48] * 10, [96] * 10), (3, 1), 100, -3.0),
    "thin_A": (([4] * 3, [8] * 3, [16] * 3), (3,), 62, -1.0),
}


def fitnet(name: str, block: str = "highway", classes: int = 10) -> ConvNet:
    """Nets like those of the paper's table 2, for images 3 x 32 x 32: A, B and C of 11, 19 and 32 layers.

    A and B share the depths of FitNets 1 and 4.  The paper gives depths and rounded counts only, no widths; ours are
    chosen to meet these: three stages, the first layer of each 3 x 3 and plain, C's
    further layers 3 x 3 and 1 x 1 in turn; max-pools of 2, 2 and 8; a ReLU layer of 250, 500 and 100 units before the
    read-out, which brings the counts to the paper's; dropout and the read-out's start as in `cifar_conv_net`; b_T -1,
    -2 and -3, the paper's advice for depths of about 10, 20 and 30.  thin_A is not the paper's: A with a quarter of its
    channels, for a look at how such nets train in seconds.

    Returns:
        A ConvNet; `initialize_as_authors` draws its weights.

    >>> [sum(p.numel() for p in fitnet(name).parameters()) for name in "ABC"]  # paper: 236K, 2.3M, 1.25M
    [236328, 2312438, 1251798]
    """
    check_one_of("fitnet", "name", name, FITNETS)
    check_positive_integer("fitnet", classes=classes)
    stages, kernels, head, gate_bias = FITNETS[name]
    plan: list[Step] = []
    for widths, pool in zip(stages, (2, 2, 8), strict=True):
        sizes = [3, *itertools.islice(itertools.cycle(kernels), len(widths) - 1)]
        plan += [nn.Dropout(0.2), *map(Conv, widths, sizes), nn.MaxPool2d(pool, pool)]
    return build("fitnet", [*plan, Dense(head), nn.Dropout(0.2)], (3, 32, 32), classes, block, gate_bias,
                 readout_std=0.05)


@takes(net=instance_of(ConvNet, "a ConvNet"))
def initialize_as_authors(net: ConvNet, seed: int = 0) -> ConvNet:
    """Draw He-normal weights for H and T, set their biases to 0, as in the authors' files, and keep b_T.

    The first layer and the read-out have the standard deviation that the net gives for them, if any.

    A seed means the same weights on every device (see `initialize`, which draws).

    Returns:
        `net`, which is changed in place.
    """
    initialize(net, "he_normal", seed=seed)
    with torch.no_grad():
        for layer, std in ((net.hidden_layers[0].affine, net.first_std), (net.readout, net.readout_std)):
            if std is not None:
                layer.weight *= std / math.sqrt(2 / layer.weight[0].numel())
    return net


# --- from plan to modules --------------------------------------------------------------------------------------------


def build(call: str, plan: list[Step], in_shape: Shape, classes: int, block: str, gate_bias: float,
          readout_std: float | None, first_std: float | None = None) -> ConvNet:
    check_one_of(call, "block", block, BLOCKS)
    if block == "plain":
        plan = plain_twin(plan, in_shape, classes)
    return ConvNet(plan, in_shape, classes, block, gate_bias, readout_std, first_std)


def modules_of(plan: Sequence[Step], in_shape: Shape, highway: bool, gate_bias: float) -> Iterator[nn.Module]:
    for step, shape in with_input_shapes(plan, in_shape):
        if isinstance(step, Dense):
            yield nn.Flatten()
            yield PlainBlock(nn.Linear(math.prod(shape), step.width), "relu")
        elif isinstance(step, Conv):
            padding = step.kernel // 2 if step.padded else 0
            if highway and is_highway(step, shape):
                affine = nn.Conv2d(step.width, 2 * step.width, step.kernel, padding=padding)
                yield HighwayBlock(affine, "relu", gate_bias)
            else:
                yield PlainBlock(nn.Conv2d(shape[0], step.width, step.kernel, padding=padding), "relu")
        elif isinstance(step, nn.Module):
            yield step


def with_input_shapes(plan: Sequence[Step], in_shape: Shape) -> Iterator[tuple[Step | None, torch.Size]]:
    """Each step with the shape of one sample before it; at the end None, for the read-out."""
    x = torch.empty(1, *in_shape, device="meta")
    for step in (*plan, None):
        yield step, x.shape[1:]
        if isinstance(step, Dense):
            x = x.new_empty(1, step.width)
        elif isinstance(step, Conv):
            cut = 0 if step.padded else step.kernel - 1
            x = x.new_empty(1, step.width, x.shape[2] - cut, x.shape[3] - cut)
        elif step is not None:
            x = step(x)


def is_highway(step: Conv, shape: torch.Size) -> bool:
    return step.padded and step.width == shape[0]


def plain_twin(plan: Sequence[Step], in_shape: Shape, classes: int) -> list[Step]:
    """The plan with all stages that have highway layers wider by one factor, that of the nearest parameter count.

    A stage by itself needs sqrt(2), for its 2 w^2 weights a layer; the plain layers between stages make it less.
    """
    widths = [step.width for step in plan if isinstance(step, Conv)]
    stages = sorted({width for width, after in itertools.pairwise(widths) if width == after})
    target = count(plan, in_shape, classes, highway=True)

    def widened(new: Sequence[int]) -> list[Step]:
        at = dict(zip(stages, new, strict=True))
        return [replace(step, width=at.get(step.width, step.width)) if isinstance(step, Conv) else step
                for step in plan]

    factors = (1 + i / 1000 for i in range(500))
    candidates = dict.fromkeys(tuple(round(factor * width) for width in stages) for factor in factors)
    return min(map(widened, candidates),
               key=lambda twin: abs(count(twin, in_shape, classes, highway=False) - target))


def count(plan: Sequence[Step], in_shape: Shape, classes: int, highway: bool) -> int:
    """Parameters of the net, before it is made."""
    total = 0
    for step, shape in with_input_shapes(plan, in_shape):
        if isinstance(step, Conv):
            own = step.width * (shape[0] * step.kernel**2 + 1)
            total += 2 * own if highway and is_highway(step, shape) else own
        elif isinstance(step, Dense):
            total += step.width * (math.prod(shape) + 1)
        elif step is None:
            total += classes * (math.prod(shape) + 1)
    return total
