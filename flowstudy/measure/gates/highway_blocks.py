"""The transform gates of HighwayBlocks, read off the outputs of their affine maps."""

import torch
from torch import Tensor, nn

from flowstudy.measure.gated_layers import layers_and_gates
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.models.layers import changed_outputs

from .counted_pass import Gates, GateUse, counted_layers


def gates_of_blocks(call: str, model: nn.Module, inputs: Inputs) -> Gates:
    """The transform gate T of each use of each block, averaged over positions: (sample, unit), float64.

    T is read off the affine map's output, which the pass computes anyway.  The layer may be the block, its affine map
    or a module around it, so T is held until that layer's call ends and its number is known.
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
