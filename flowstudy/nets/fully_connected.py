"""The paper's fully connected nets: one plain input layer, depth - 1 blocks, a linear read-out."""

from collections.abc import Callable

from torch import Tensor, nn

from flowstudy.names import ActivationName

from .blocks import HighwayBlock, PlainBlock, check_activation, check_positive_integer


class FullyConnected(nn.Module):
    """`depth` counts the hidden layers as the paper does; the linear read-out is not counted."""

    in_features: int
    width: int
    depth: int
    out_features: int
    activation: str
    input: PlainBlock
    blocks: nn.Sequential
    readout: nn.Linear

    def __init__(self, in_features: int, width: int, depth: int, out_features: int, activation: ActivationName,
                 block: Callable[[], nn.Module]):
        super().__init__()
        name = type(self).__name__
        check_positive_integer(name, in_features=in_features, width=width, depth=depth, out_features=out_features)
        self.in_features, self.width, self.depth, self.out_features = in_features, width, depth, out_features
        self.activation = activation
        self.input = PlainBlock(nn.Linear(in_features, width), activation)
        self.blocks = nn.Sequential(*(block() for _ in range(depth - 1)))
        self.readout = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of inputs (..., in_features).

        Returns:
            (..., out_features).
        """
        return self.readout(self.blocks(self.input(x)))

    @property
    def hidden_layers(self) -> list[nn.Module]:
        """The `depth` hidden layers in order: what measurements call layer 1..depth."""
        return [self.input, *self.blocks]

    def set_activation(self, name: str) -> None:
        """Set the activation of every hidden layer, by a name in `ACTIVATIONS`."""
        for module in (self, *self.hidden_layers):
            module.activation = check_activation(type(self).__name__, name)


class PlainNet(FullyConnected):
    """A plain net; width 71 has about the parameters of a highway net of width 50 (paper, section 3.1).

    >>> sum(p.numel() for p in PlainNet(depth=10).parameters())
    102463
    """

    def __init__(self, in_features: int = 784, width: int = 71, depth: int = 10, out_features: int = 10,
                 activation: ActivationName = "relu"):
        super().__init__(in_features, width, depth, out_features, activation,
                         lambda: PlainBlock(nn.Linear(width, width), activation))


class HighwayNet(FullyConnected):
    """A highway net; the first layer is plain since it changes the size (paper, section 2.1).

    >>> sum(p.numel() for p in HighwayNet(depth=10).parameters())
    85660
    """

    def __init__(self, in_features: int = 784, width: int = 50, depth: int = 10, out_features: int = 10,
                 activation: ActivationName = "tanh", gate_bias: float = -2.0):
        super().__init__(in_features, width, depth, out_features, activation,
                         lambda: HighwayBlock(nn.Linear(width, 2 * width), activation, gate_bias))

    @property
    def gate_biases(self) -> list[Tensor]:
        """b_T of each highway block, (width,) each."""
        return [block.gate_bias for block in self.blocks]

    def set_gate_bias(self, value: float) -> None:
        """Set b_T of every unit of every block."""
        for block in self.blocks:
            block.set_gate_bias(value)
