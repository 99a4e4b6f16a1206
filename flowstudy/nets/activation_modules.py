"""The activation between a model's weight layers, with its options, by the name that theory has for it."""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules import activation as torchs

from flowstudy.theory.mean_field.activations import Activation, hard_tanh, rectifier

NOT_BETWEEN_WEIGHTS = ("MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax")
MODULES = tuple(getattr(torchs, name) for name in torchs.__all__ if name not in NOT_BETWEEN_WEIGHTS)
WITHOUT_OPTIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


@dataclass(frozen=True)
class Nonlinearity:
    """An activation by theory's name, where `is_known`, else by what it is in the model.

    Attributes:
        options: of leaky_relu its slope below 0, of hard_tanh its range; () stands for theory's own.
    """

    name: str
    options: tuple[float, ...] = ()
    is_known: bool = True

    @property
    def in_theory(self) -> str | Activation:
        if not self.options:
            return self.name
        return {"leaky_relu": rectifier, "hard_tanh": hard_tanh}[self.name](*self.options)


def activation_between(model: nn.Module, name: str | None = None) -> Nonlinearity | None:
    """The activation of the model's activation modules, if all have the same; None where the model has none.

    Args:
        name: theory's name of the one that is meant; its options are those of the model's modules of that name.
    """
    found = dict.fromkeys(read(module) for module in model.modules() if isinstance(module, MODULES))
    if name is not None:
        found = [one for one in found if one.name == name] or [Nonlinearity(name)]
    if len(found) > 1:
        return Nonlinearity(" and ".join(map(nonlinearity_in_words, found)), is_known=False)
    return next(iter(found), None)


def nonlinearity_in_words(one: Nonlinearity) -> str:
    return one.name + (f"({', '.join(map(str, one.options))})" if one.options else "")


def read(module: nn.Module) -> Nonlinearity:
    """The activation of a module, known for torch's own classes only, since a subclass may compute something else."""
    kind = type(module)
    if kind in WITHOUT_OPTIONS:
        return Nonlinearity(WITHOUT_OPTIONS[kind])
    if kind is nn.LeakyReLU:
        return Nonlinearity("leaky_relu", (float(module.negative_slope),))
    if kind is nn.PReLU and len(slopes := module.weight.detach().unique()) == 1:
        return Nonlinearity("leaky_relu", (slopes.item(),))
    if kind in (nn.Hardtanh, nn.ReLU6):
        return Nonlinearity("hard_tanh", (float(module.min_val), float(module.max_val)))
    if kind is nn.GELU and module.approximate == "none":
        return Nonlinearity("gelu")
    return Nonlinearity(repr(module), is_known=False)
