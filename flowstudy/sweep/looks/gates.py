"""Measurements of trained highway nets: how their gates route, and their error with one layer's gates closed."""

import pandas as pd
import torch
from torch import Tensor

from flowstudy.data import Dataset
from flowstudy.measure import gate_activity
from flowstudy.measure.lesions import lesion_losses
from flowstudy.nets import HighwayNet

from .moment import CellsMoment


def gate_routing(moment: CellsMoment, data: Dataset, sample: int = 0) -> pd.DataFrame:
    """Per highway `layer` and `unit`: `trained_gate_bias` (the cell's `gate_bias` is the start's), mean gate `activity`
    over the training samples, and for the training sample number `sample` the gate's `single_activity` and the block's
    `single_output` (Srivastava et al. 2015, figure 2)."""
    one, frames = data.x_train[sample:sample + 1], []
    for i in range(len(moment.stack)):
        net = moment.stack.net(i)
        rows = gate_activity(net, data.x_train).frame.drop(columns="module")
        rows = rows.rename(columns={"gate_bias": "trained_gate_bias"})
        single = gate_activity(net, one).frame["activity"]
        frames.append(rows.assign(place=i, single_activity=single, single_output=block_outputs(net, one).flatten()))
    return pd.concat(frames, ignore_index=True)


def gate_routing_by_class(moment: CellsMoment, data: Dataset) -> pd.DataFrame:
    """Per highway `layer`, `class` and `unit`: mean gate `activity` over the training samples of the class, and its
    `difference` from the mean over all (Srivastava et al. 2015, figure 3)."""
    frames = [gate_activity(moment.stack.net(i), data.x_train, data.y_train).by_class.assign(place=i)
              for i in range(len(moment.stack))]
    return pd.concat(frames, ignore_index=True).drop(columns="module")


def lesions(moment: CellsMoment, data: Dataset) -> pd.DataFrame:
    """`error` (share of the training samples misclassified) and `loss` (cross-entropy, nats per sample) with all gates
    of `layer` closed, one highway layer at a time; layer 0 is the intact net (Srivastava et al. 2015, figure 4)."""
    frames = []
    for i in range(len(moment.stack)):
        error, loss = lesion_losses(moment.stack.net(i), data.x_train, data.y_train)
        layers = [0, *range(2, len(error) + 1)]  # the first hidden layer is plain
        frames.append(pd.DataFrame({"place": i, "layer": layers, "error": error.numpy(), "loss": loss.numpy()}))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def block_outputs(net: HighwayNet, x: Tensor) -> Tensor:
    """(layer, unit) of the highway blocks, for one input."""
    h, outputs = net.input(x), []
    for block in net.blocks:
        h = block(h)
        outputs.append(h[0])
    return torch.stack(outputs).double().cpu()
