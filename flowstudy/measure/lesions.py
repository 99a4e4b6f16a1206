"""A highway net without one layer after the other: all lesions in one pass over the data."""

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from flowstudy.nets import HighwayBlock, HighwayNet
from flowstudy.nets.blocks import ACTIVATIONS, runs_as
from flowstudy.nets.fully_connected import FullyConnected

CHUNK = 500  # samples: what goes through at once, times the number of layers, stays small


@torch.no_grad()
def lesion_losses(net: HighwayNet, x: Tensor, y: Int[Tensor, " sample"]
                  ) -> tuple[Float64[Tensor, " lesion"], Float64[Tensor, " lesion"]]:
    """Error and loss of the intact net and with each highway layer's gates closed in turn.

    A closed layer copies its input.  The nets without layer 2, 3, ... are one until the layer that they lack: at layer
    l one more variant branches off, and those that have branched go on together through one matrix product.  That is
    half the work of a pass for each, in the net's own precision.

    Args:
        net: fully connected.
        x: inputs (sample, feature) on the net's device; y their labels.

    Returns:
        Share of samples misclassified, and mean cross-entropy [nats], by lesion: first the intact net, then the lesions
        of layers 2..depth; on the CPU.

    Raises:
        ValueError: a net with layers of its own, or hooks: its layers are computed here as HighwayBlock's.

    Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), section 4.2 and figure 4.
    """
    check_highway_net(net)
    wrong = torch.zeros(net.depth, dtype=torch.float64, device=x.device)
    loss = torch.zeros_like(wrong)
    for part, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        logits = net.readout(variants(net, part))
        wrong += (logits.argmax(-1) != labels).sum(-1)
        log_p = torch.log_softmax(logits, -1).gather(-1, labels.expand(len(logits), -1).unsqueeze(-1))
        loss -= log_p.squeeze(-1).double().sum(-1)
    return (wrong / len(x)).cpu(), (loss / len(x)).cpu()


def variants(net: HighwayNet, x: Tensor) -> Tensor:
    """The last hidden layer's output by lesion, (depth, sample, unit): intact, without layer 2, ..., without depth."""
    together = net.input(x).unsqueeze(0)  # the intact net comes first
    for block in net.blocks:
        whole = together[:1]
        h, t = torch.nn.functional.linear(together, block.affine.weight, block.affine.bias).chunk(2, -1)
        through = torch.lerp(together, ACTIVATIONS[block.activation](h), torch.sigmoid(t))
        together = torch.cat([through, whole])  # the last to branch off has just lost this layer
    return together


def check_highway_net(net: nn.Module) -> None:
    known = isinstance(net, HighwayNet) and type(net).forward is FullyConnected.forward and runs_as(net, type(net))
    if not known or not all(runs_as(b, HighwayBlock) and runs_as(b.affine, nn.Linear) for b in net.blocks):
        raise ValueError(f"lesion_losses: `net` must be a HighwayNet of HighwayBlocks with nn.Linear, without hooks, "
                         f"got {type(net).__name__} with a part of its own. Use `lesion`, one layer at a time.")
