"""Nets of one structure stacked along a leading axis, so that one matrix product serves them all."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowstudy.nets.blocks import HOOKS


@dataclass(frozen=True)
class Stack:
    """Same-structure nets as one.

    Attributes:
        template: a module of the nets' structure; it lends its forward pass, not its weights.
        state: parameters by name, (net, ...) each.
    """

    template: nn.Module
    state: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.state.values())))

    def __call__(self, x: Float[Tensor, "sample *inputs"]) -> Float[Tensor, "net sample outputs"]:
        """Every net's outputs for the same inputs."""
        return torch.func.vmap(self._one, in_dims=(0, None))(self.state, x)

    def _one(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(self.template, state, (x,))

    def net(self, index: int) -> nn.Module:
        """One of the nets, as a module of its own."""
        module = copy.deepcopy(self.template)
        module.load_state_dict({name: value[index] for name, value in self.state.items()})
        return module


def stack(nets: Sequence[nn.Module], device: torch.device | str = "cpu") -> Stack:
    """Stack nets of equal structure; they must hold no buffers (batch norm's running statistics)."""
    if not nets:
        raise ValueError("stack: `nets` must hold at least one net, got none.")
    parameters = [dict(net.named_parameters()) for net in nets]
    shapes, parts = {name: value.shape for name, value in parameters[0].items()}, parts_of(nets[0])
    for i, net in enumerate(nets):
        # The forward pass is the first net's: what has no parameters, as activations, must agree too, and repr has it.
        same = repr(net) == repr(nets[0]) and parts_of(net) == parts
        if not same or {name: value.shape for name, value in parameters[i].items()} != shapes:
            raise ValueError(f"stack: all nets must have the structure of the first, nets[{i}] has another. "
                             "Stack nets of equal depth, width and activation.")
        if any(True for _ in net.buffers()):
            raise ValueError(f"stack: nets must have no buffers, nets[{i}] has some. Train it by itself.")
    return stack_states(copy.deepcopy(nets[0]), parameters, device)  # a copy: `device` must not move the net itself


def parts_of(net: nn.Module) -> list[tuple]:
    """What repr does not say of each module: its very class, a forward of its own, how many hooks it has."""
    return [(parametrize.type_before_parametrizations(module), "forward" in vars(module),
             *(len(getattr(module, hooks)) for hooks in HOOKS)) for module in net.modules()]


def stack_states(template: nn.Module, states: Sequence[dict[str, Tensor]], device: torch.device | str = "cpu") -> Stack:
    """Stack the parameters of nets that have the template's structure."""
    state = {name: torch.stack([own[name].detach() for own in states]).to(device) for name in states[0]}
    return Stack(template.to(device), state)
