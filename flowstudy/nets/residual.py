"""Residual nets without normalisation: one matrix per layer, its output added to its input."""

from torch import Tensor, nn

from flowstudy.names import ActivationName
from flowstudy.torch_arguments import MODULE

from .blocks import ACTIVATIONS, check_activation
from .fully_connected import FullyConnected


class ResidualBlock(nn.Module):
    """`y = x + activation(affine(x))`: a highway layer whose gate lets all of H and all of x through.

    Args:
        affine: maps to the same size: `nn.Linear`, or a padded convolution.
        activation: a name in `ACTIVATIONS`.

    Source: He et al. 2016 (arXiv:1603.05027), figure 4(c), "ReLU before addition", without batch normalisation.  It is
    not the unit that they propose (pre-activation): they found it worse, 7.84 against 6.61 % error, since the branch
    only ever adds and the signal grows (`theory.residual_net`, the mean mode).  Balduzzi et al. 2017
    (arXiv:1702.08591) analyse this unit.
    """

    def __init__(self, affine: nn.Module, activation: ActivationName = "relu"):
        super().__init__()
        MODULE("ResidualBlock", "affine", affine)
        self.affine = affine
        self.activation: ActivationName = check_activation("ResidualBlock", activation)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs.

        Returns:
            `x + activation(affine(x))`, of x's shape.
        """
        return x + ACTIVATIONS[self.activation](self.affine(x))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class ResidualNet(FullyConnected):
    """A residual net of as many parameters as the plain net; the first layer is plain since it changes the size.

    A ReLU branch is scaled by the gain of its weights: there is no factor of its own.

    >>> sum(p.numel() for p in ResidualNet(depth=10).parameters())
    102463
    """

    def __init__(self, in_features: int = 784, width: int = 71, depth: int = 10, out_features: int = 10,
                 activation: ActivationName = "relu"):
        super().__init__(in_features, width, depth, out_features, activation,
                         lambda: ResidualBlock(nn.Linear(width, width), activation))
