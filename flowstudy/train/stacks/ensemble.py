"""Nets of one structure stacked along a leading axis, so that one matrix product serves them all."""

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowstudy.arguments import a_whole, instance_of, several, takes
from flowstudy.nets.blocks import HOOKS
from flowstudy.nets.fully_connected import FullyConnected
from flowstudy.refusal import RefusalError
from flowstudy.torch_arguments import MODULE, TENSOR, check_torch_device, some_tensors


@dataclass(frozen=True)
class Stack:
    """Same-structure nets as one.

    Attributes:
        template: a module of the nets' structure; it lends its forward pass, not its weights.
        state: parameters by name, (net, ...) each.
        activations: each net's, of fully connected nets that differ in it alone; none: all have the template's.
    """

    template: nn.Module
    state: dict[str, Tensor]
    activations: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.state.values())))

    def __call__(self, x: Float[Tensor, "sample *inputs"]) -> Float[Tensor, "net sample outputs"]:
        """Every net's outputs for the same inputs.

        Returns:
            (net, sample, outputs), in the nets' dtype and on their device.
        """
        if self.activations:
            return torch.cat([self.part(nets)(x) for _, nets in runs_of(self.activations)])
        return torch.func.vmap(functools.partial(one_net, self.template), in_dims=(0, None))(self.state, x)

    @takes(nets=instance_of(slice, "a slice"))
    def part(self, nets: slice) -> "Stack":
        """The nets of a slice; the template has their activation where all have the same.

        Returns:
            A Stack whose parameters are views of this one's.
        """
        state, names = {name: value[nets] for name, value in self.state.items()}, self.activations[nets]
        if len(set(names)) == 1:
            return Stack(with_activation(self.template, names[0]), state)
        return Stack(self.template, state, names)

    @takes(kept=TENSOR)
    def only(self, kept: Bool[Tensor, " net"]) -> "Stack":
        """The nets that are marked True, in their order.

        Returns:
            A Stack with copies of their parameters.
        """
        names = tuple(itertools.compress(self.activations, kept.tolist()))
        return Stack(self.template, {name: value[kept.to(value.device)] for name, value in self.state.items()}, names)

    @takes(index=a_whole(0))
    def net(self, index: int) -> nn.Module:
        """One of the nets, as a module of its own.

        Returns:
            A module of the template's class, on the stack's device, with copies of that net's parameters.
        """
        one = self.part(slice(index, index + 1))
        module = copy.deepcopy(one.template)
        module.load_state_dict({name: value[0] for name, value in one.state.items()})
        return module


def one_net(template: nn.Module, state: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(template, state, (x,))


def with_activation(template: FullyConnected, name: str) -> FullyConnected:
    changed = copy.deepcopy(template)
    changed.set_activation(name)
    return changed


def runs_of(names: Sequence[str]) -> list[tuple[str, slice]]:
    """Equal names that follow each other, each with where it stands.

    >>> runs_of(["relu", "relu", "tanh"])
    [('relu', slice(0, 2, None)), ('tanh', slice(2, 3, None))]
    """
    runs, first = [], 0
    for name, group in itertools.groupby(names):
        last = first + len(list(group))
        runs.append((name, slice(first, last)))
        first = last
    return runs


@takes(nets=several(MODULE), device=check_torch_device)
def stack(nets: Sequence[nn.Module], device: torch.device | str = "cpu") -> Stack:
    """Stack nets of equal structure; they must hold no buffers (batch norm's running statistics).

    Returns:
        A Stack, its parameters copied to `device`, (net, ...) each.
    """
    parameters = [dict(net.named_parameters()) for net in nets]
    shapes, parts = {name: value.shape for name, value in parameters[0].items()}, parts_of(nets[0])
    for i, net in enumerate(nets):
        # The forward pass is the first net's: what has no parameters, as activations, must agree too, and repr has it.
        same = repr(net) == repr(nets[0]) and parts_of(net) == parts
        if not same or {name: value.shape for name, value in parameters[i].items()} != shapes:
            raise RefusalError(f"stack: all nets must have the structure of the first, nets[{i}] has another. "
                               "Stack nets of equal depth, width and activation.")
        if any(True for _ in net.buffers()):
            raise RefusalError(f"stack: nets must have no buffers, nets[{i}] has some. Train it by itself.")
    return stack_states(copy.deepcopy(nets[0]), parameters, device)  # a copy: `device` must not move the net itself


def parts_of(net: nn.Module) -> list[tuple]:
    """What repr does not say of each module: its very class, a forward of its own, how many hooks it has."""
    return [(parametrize.type_before_parametrizations(module), "forward" in vars(module),
             *(len(getattr(module, hooks)) for hooks in HOOKS)) for module in net.modules()]


@takes(template=MODULE, states=several(some_tensors), device=check_torch_device)
def stack_states(template: nn.Module, states: Sequence[dict[str, Tensor]], device: torch.device | str = "cpu") -> Stack:
    """Stack the parameters of nets that have the template's structure.

    Returns:
        A Stack, its parameters copied to `device`, (net, ...) each.
    """
    state = {name: torch.stack([own[name].detach() for own in states]).to(device) for name in states[0]}
    return Stack(template.to(device), state)
