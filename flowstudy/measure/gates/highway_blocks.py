"""The transform gates of HighwayBlocks, read off what their affine maps put out."""

import torch
from torch import Tensor, nn

from flowstudy.measure.gated_layers import layers_and_gates
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.layers import changed_outputs

from .counted_pass import Gates, GateUse, counted_layers


def gates_of_blocks(call: str, model: nn.Module, inputs: Inputs) -> Gates:
    """T of each use of each block.

    T is read off the affine map's output, which the pass computes anyway. As the layer may be the block, its affine
    map or something around it, T waits for the layer's own call to end, which gives the layer its number.
    """
    blocks = {name: model.get_submodule(name) for name in layers_and_gates(call, model)[1]}
    gates: Gates = {}
    waiting: list[tuple[str, Tensor]] = []

    def read(name: str, output: Tensor) -> Tensor:
        axis = blocks[name].channel_axis
        t = torch.sigmoid(output.detach().double().chunk(2, axis)[1]).movedim(axis, 1)
        waiting.append((name, t.reshape(*t.shape[:2], -1).mean(-1)))
        return output

    def ended(number: int) -> None:
        gates.update({GateUse(number, name): t for name, t in waiting})
        waiting.clear()

    affine = {name: block.affine for name, block in blocks.items()}
    with changed_outputs(affine, read), counted_layers(call, model, inputs, ended):
        inputs.call_model(model)
    return gates
