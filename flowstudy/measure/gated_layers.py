"""The layers of a model that have a transform gate, and their numbers."""

from collections.abc import Iterator

from torch import nn

from flowstudy.nets import HighwayBlock
from flowstudy.refusal import RefusalError

from .models.layers import layers_of


def layers_and_gates(call: str, model: nn.Module) -> tuple[list[nn.Module], dict[str, int]]:
    """The layers in the order in which the model holds them, and each HighwayBlock's layer number by block name."""
    layers = set(layers_of(call, model).values())
    order = [module for module in dict.fromkeys(inside_out(model)) if module in layers]
    number: dict[nn.Module, int] = {}
    for i, layer in enumerate(order, 1):
        for part in layer.modules():
            number.setdefault(part, i)
    # A block is found by its affine map, which lies in the block's layer: that layer is the block itself where
    # `hidden_layers` lists it, else the map, because it holds the weights.
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, HighwayBlock)}
    for name, block in blocks.items():
        check_forward(call, name, block)
    gates = {name: number[block.affine] for name, block in blocks.items() if block.affine in number}
    if not gates:
        raise RefusalError(f"{call}: `model` must have a HighwayBlock among its layers, got {type(model).__name__} "
                           "without any.")
    return order, gates


def check_forward(call: str, name: str, block: HighwayBlock) -> None:
    """Refuse a block with a forward of its own; hooks are allowed, since T is read off the affine map's output."""
    if type(block).forward is not HighwayBlock.forward or "forward" in vars(block):
        raise RefusalError(f"{call}: `model` must have blocks that run as HighwayBlock does, got {name!r}, a "
                           f"{type(block).__name__} with a forward of its own: what its gate does is not known. "
                           "Pass the part of the model without it.")


def inside_out(module: nn.Module) -> Iterator[nn.Module]:
    """Every module after those inside it: a call ends after the calls inside it."""
    for child in module.children():
        yield from inside_out(child)
    yield module
