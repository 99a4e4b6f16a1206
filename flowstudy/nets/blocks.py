"""One layer each: the plain layer and the highway layer, fully connected or convolutional."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.arguments import LARGEST, MOST_LAYERS, check_one_of, check_real, check_whole, takes
from flowstudy.names import ActivationName
from flowstudy.refusal import RefusalError
from flowstudy.torch_arguments import MODULE, TENSOR

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda h: h,
    "gelu": F.gelu,  # the exact (erf) form
    "hard_tanh": F.hardtanh,
    "erf": torch.erf,
}


class PlainBlock(nn.Module):
    """`activation(affine(x))`: the layer that every deep net is made of.

    Args:
        affine: the affine map, `nn.Linear` or a convolution.
        activation: a name in `ACTIVATIONS`.
    """

    def __init__(self, affine: nn.Module, activation: ActivationName = "relu"):
        super().__init__()
        MODULE("PlainBlock", "affine", affine)
        self.affine = affine
        self.activation: ActivationName = check_activation("PlainBlock", activation)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs.

        Returns:
            `activation(affine(x))`, of the shape of the affine map's output.
        """
        return ACTIVATIONS[self.activation](self.affine(x))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class HighwayBlock(nn.Module):
    """`y = H(x) * T(x) + x * (1 - T(x))`, with `T = sigmoid(W_T x + b_T)` the transform gate.

    H and T come out of one matrix product: the affine map has twice the block's width, the first half of its
    rows is H's, the second half T's.  A closed gate (T = 0) copies the input bit for bit.

    Args:
        affine: maps `width` channels to `2 * width` of the same size: `nn.Linear`, or a padded convolution.
        activation: H's non-linearity, a name in `ACTIVATIONS`.
        gate_bias: initial b_T; negative opens the carry path.  `initialize` leaves it alone.

    Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), equation 3.
    """

    def __init__(self, affine: nn.Module, activation: ActivationName = "tanh", gate_bias: float = -1.0):
        super().__init__()
        MODULE("HighwayBlock", "affine", affine)
        self.affine = affine
        self.activation: ActivationName = check_activation("HighwayBlock", activation)
        self.channel_axis: int = 1 - affine.weight.ndim  # -1 for Linear, -3 for Conv2d: from the end, so vmap is safe
        self.set_gate_bias(gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's outputs.

        Returns:
            `x + T(x) * (H(x) - x)`, of x's shape.
        """
        h, t = self.affine(x).chunk(2, self.channel_axis)
        return torch.lerp(x, ACTIVATIONS[self.activation](h), torch.sigmoid(t))  # x + T (H - x)

    @takes(x=TENSOR)
    def transform_gate(self, x: Tensor) -> Tensor:
        """The transform gate T at these inputs.

        Returns:
            T(x) in [0, 1], of x's shape.
        """
        return torch.sigmoid(self.affine(x).chunk(2, self.channel_axis)[1])

    @property
    def gate_bias(self) -> Float[Tensor, " width"]:
        """b_T, a view into the fused bias."""
        return self.affine.bias.chunk(2)[1]

    @torch.no_grad()
    def set_gate_bias(self, value: float | Tensor) -> None:
        """Set b_T of every unit; `-inf` closes the layer, which then copies its input."""
        if not isinstance(value, Tensor):
            value = check_real("HighwayBlock", "gate_bias", value, "a number", " Give a negative bias, such as -2.0.")
        elif value.isnan().any() or value.shape not in ((), self.gate_bias.shape):
            raise RefusalError("HighwayBlock: `gate_bias` must be a number for each unit, got "
                               f"{'nan' if value.isnan().any() else tuple(value.shape)}.")
        self.gate_bias.copy_(torch.as_tensor(value))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def runs_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is `kind`'s own forward pass and nothing else: no subclass, no hook, and no
    parametrization, which makes a subclass.  What is known about `kind` in closed form holds for no other module."""
    return (type(module) is kind and "forward" not in vars(module)
            and not any(getattr(module, hooks) for hooks in HOOKS))


def check_activation(call: str, name: str) -> str:
    return check_one_of(call, "activation", name, ACTIVATIONS)


def check_positive_integer(call: str, **arguments: int) -> None:
    for name, value in arguments.items():
        check_whole(call, name, value, least=1, most=MOST_LAYERS if name == "depth" else LARGEST)
