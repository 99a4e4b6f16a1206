"""Transform gates: how far each is open, for which inputs."""

from contextlib import ExitStack
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from flowstudy.measure.models.context import RandomState, in_own_context
from flowstudy.measure.models.copies import check_input, float64_copy
from flowstudy.measure.models.forward import LooseWeights
from flowstudy.measure.models.gated_layers import layers_and_gates
from flowstudy.measure.models.layers import changed_outputs, shared_out
from flowstudy.measure.models.precision.attempts import in_float64

CHUNK = 512  # inputs that run at once: bounds the memory that 60,000 images take in a convolutional net

BlockUse = tuple[int, str]                       # of a block: the layer's number, the block's name
Gates = Float64[Tensor, "sample unit"]
ClassMeans = Float64[Tensor, "class unit"]


@dataclass(frozen=True)
class GateActivity:
    """What `gate_activity` found.

    Attributes:
        frame: a row per layer and unit, in execution order: `layer`, `module`, `unit` (from 0), `gate_bias` (b_T),
            `activity` (mean of T over the inputs).
        by_class: a row per layer, class and unit: `layer`, `module`, `class`, `unit`, `activity` (mean of T over the
            inputs of the class), `difference` (that minus the mean over all inputs). None where no labels were given.
    """

    frame: pd.DataFrame
    by_class: pd.DataFrame | None


@in_own_context
@in_float64
def gate_activity(model: nn.Module, x: Tensor, y: Tensor | None = None) -> GateActivity:
    """Mean transform-gate activity of every unit of every highway layer, over all inputs and per class.

    Measured in float64 on a copy in eval mode, where no input depends on the others; the model and the global random
    state stay as they are. One input's activity is `gate_activity(model, x[i:i + 1])`; with `y=torch.arange(len(x))`
    each input is a class of its own.

    >>> from flowstudy.nets import HighwayNet
    >>> net = HighwayNet(in_features=3, width=4, depth=3, gate_bias=0.0)
    >>> gates = gate_activity(net, torch.eye(3), torch.tensor([0, 0, 1]))
    >>> gates.frame.pivot(index="layer", columns="unit", values="activity").shape  # as in the paper's figure 2
    (2, 4)
    >>> list(gates.by_class.columns)  # `difference` is what its figure 3 shows
    ['layer', 'module', 'class', 'unit', 'activity', 'difference']

    Args:
        model: any module with a `HighwayBlock` in it. A block that is used twice has rows for each use.
        x: inputs, (sample, ...), on the model's device.
        y: integer labels (sample,), for the means per class; a class without inputs has no rows.

    Returns:
        T in [0, 1]; a unit of a convolutional block is a channel, its T averaged over positions. `layer` counts as in
        `gradient_flow`: from 1, plain layers included, so that a HighwayNet's gates are those of layers 2..depth.
        nan where the net has diverged.

    What it cannot measure: gates of layers that are no HighwayBlock, and of a subclass with a forward of its own, whose
    gate may do something else: both are refused.

    Raises:
        ValueError, TypeError: a model that runs no HighwayBlock, or one with a forward of its own, an empty or
            non-finite batch, labels that do not fit.

    Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), section 4.1.
    """
    call = "gate_activity"
    copied = float64_copy(call, model).eval()
    x = check_input(call, model, x)
    classes, of_class = check_classes(call, x, y)
    with RandomState(x.device).replayed():   # with gradients on: a model may take some in its forward
        means = means_by_use(call, copied, x, len(classes), of_class)
    return GateActivity(frame_by_unit(copied, means), None if y is None else frame_by_class(means, classes))


# --- measuring -------------------------------------------------------------------------------------------------------


def means_by_use(call: str, model: nn.Module, x: Tensor, classes: int, of_class: Int64[Tensor, " sample"],
                 ) -> dict[BlockUse, tuple[Float64[Tensor, " unit"], ClassMeans]]:
    """For every use of a block the mean of T over all inputs and over those of each class."""
    sums: dict[BlockUse, Tensor] = {}
    for start in range(0, len(x), CHUNK):
        gates = gates_in_one_pass(call, model, x[start:start + CHUNK])
        if start == 0:
            sums = {use: t.new_zeros(classes, t.shape[1]) for use, t in gates.items()}
        if not gates or gates.keys() != sums.keys():
            raise ValueError(f"{call}: `model` must run the same HighwayBlocks whatever the input, at least one, got "
                             f"{type(model).__name__}, which does not. Pass the part of it that does.")
        for use, t in gates.items():
            sums[use].index_add_(0, of_class[start:start + CHUNK], t)
    samples = torch.bincount(of_class, minlength=classes).unsqueeze(1)
    return {use: (total.sum(0) / len(x), total / samples) for use, total in sums.items()}


def gates_in_one_pass(call: str, model: nn.Module, x: Tensor) -> dict[BlockUse, Gates]:
    """T of each use of each block, in execution order.

    T is read off the affine map's output, which the pass computes anyway. As the layer may be the block, its affine
    map or something around it, T waits for the layer's own call to end, which gives the layer its number.
    """
    blocks = {name: model.get_submodule(name) for name in layers_and_gates(call, model)[1]}
    gates, waiting, number = {}, [], 0

    def read(name: str, output: Tensor) -> Tensor:
        axis = blocks[name].channel_axis
        t = torch.sigmoid(output.detach().double().chunk(2, axis)[1]).movedim(axis, 1)
        waiting.append((name, t.reshape(*t.shape[:2], -1).mean(-1)))
        return output

    def count(_name: str, output: Tensor) -> Tensor:
        nonlocal number
        number += 1
        gates.update({(number, name): t for name, t in waiting})
        waiting.clear()
        return output

    layers, loose = shared_out(model)
    with ExitStack() as stack:   # layers are counted as in gradient_flow
        stack.enter_context(changed_outputs({name: block.affine for name, block in blocks.items()}, read))
        stack.enter_context(changed_outputs(layers, count))
        if loose:
            stack.enter_context(LooseWeights(loose, x, lambda name, *_: count(name, x)))
        model(x)
    return gates


def frame_by_unit(model: nn.Module, means: dict[BlockUse, tuple[Tensor, ClassMeans]]) -> pd.DataFrame:
    def rows(layer: int, name: str, overall: Tensor) -> pd.DataFrame:
        bias = model.get_submodule(name).gate_bias
        return pd.DataFrame({"layer": layer, "module": name, "unit": range(len(overall)),
                             "gate_bias": bias.cpu().numpy(), "activity": overall.cpu().numpy()})

    return pd.concat([rows(*use, overall) for use, (overall, _) in means.items()], ignore_index=True)


def frame_by_class(means: dict[BlockUse, tuple[Tensor, ClassMeans]], classes: Int64[Tensor, " class"]) -> pd.DataFrame:
    def rows(layer: int, name: str, overall: Tensor, of_class: ClassMeans) -> pd.DataFrame:
        units = len(overall)
        return pd.DataFrame({
            "layer": layer, "module": name,
            "class": classes.repeat_interleave(units).cpu().numpy(),
            "unit": torch.arange(units).repeat(len(classes)).numpy(),
            "activity": of_class.flatten().cpu().numpy(),
            "difference": (of_class - overall).flatten().cpu().numpy(),
        })

    return pd.concat([rows(*use, *both) for use, both in means.items()], ignore_index=True)


# --- checks ----------------------------------------------------------------------------------------------------------


def check_classes(call: str, x: Tensor, y: Tensor | None) -> tuple[Int64[Tensor, " class"], Int64[Tensor, " sample"]]:
    """The classes that occur, ascending, and for each input the position of its own among them."""
    if y is None:
        return x.new_zeros(1, dtype=torch.int64), x.new_zeros(len(x), dtype=torch.int64)
    if not isinstance(y, Tensor):
        raise TypeError(f"{call}: `y` must be a tensor of labels, got {type(y).__name__}. Use torch.as_tensor.")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"{call}: `y` must be one integer label per sample, shape ({len(x)},), got {y.dtype} of shape "
                         f"{tuple(y.shape)}. Pass None for the overall mean alone.")
    return y.to(x.device, torch.int64).unique(return_inverse=True)
