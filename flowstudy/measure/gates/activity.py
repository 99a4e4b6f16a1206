"""gate_activity: how far each gate is open, on average and for the inputs of each class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from flowstudy.measure.drawn import Drawn
from flowstudy.measure.models.context import RandomState, in_own_context
from flowstudy.measure.models.copies import float64_copy
from flowstudy.measure.models.inputs import Inputs, Shown, check_input
from flowstudy.measure.models.precision.attempts import in_float64
from flowstudy.refusal import RefusalError, RefusalTypeError

from .counted_pass import Gates, GateUse
from .given import Given, check_gates, given_gates
from .highway_blocks import gates_of_blocks

CHUNK = 512  # inputs in one forward pass, which bounds the memory: 60,000 images at once would not fit

ClassMeans = Float64[Tensor, "class unit"]
Means = dict[GateUse, tuple[Float64[Tensor, " unit"], ClassMeans]]   # over all inputs, and over those of each class


@dataclass(frozen=True)
class GateActivity(Drawn):
    """The result of `gate_activity`.

    Attributes:
        frame: a row per layer and unit, in execution order: `layer`, `module`, `unit` (from 0), `gate_bias` (b_T),
            `activity` (mean of T over the inputs).
        by_class: a row per layer, class and unit: `layer`, `module`, `class`, `unit`, `activity` (mean of T over the
            inputs of the class), `difference` (that minus the mean over all inputs). None where no labels were given.

    Frames of gates that the caller names have no `gate_bias`, but `gate`, the name (for a recurrent module also that of
    its gate: "lstm.forget"), `time`, the step of the input sequence, from 1, or the number of the gate's call in the
    pass, and `direction` and `stack_layer` of a recurrent module, as in `gradient_flow`.
    """

    frame: pd.DataFrame
    by_class: pd.DataFrame | None

    drawn_by = "gate_activity"

    def __repr__(self) -> str:
        layers, classes = self.frame["layer"].nunique(), "" if self.by_class is None else ", also by class"
        return (f"GateActivity of {layers} layer{'s' * (layers != 1)}, {len(self.frame)} rows{classes}: "
                f"mean activity {self.frame['activity'].mean():.3g}")


@in_own_context
@in_float64
def gate_activity(model: nn.Module, x: Shown, y: Tensor | None = None, *,
                  gates: Given | None = None) -> GateActivity:
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

    Other gates are given by name: a highway layer of one's own, or those of an LSTM, at every time step:

    >>> class Own(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.h, self.t = nn.Linear(3, 3), nn.Linear(3, 3)
    ...     def forward(self, x):
    ...         t = torch.sigmoid(self.t(x))
    ...         return t * torch.tanh(self.h(x)) + (1 - t) * x
    >>> len(gate_activity(Own(), torch.eye(3), gates={"t": torch.sigmoid}).frame)
    3
    >>> lstm = nn.LSTM(3, 4, batch_first=True)
    >>> frame = gate_activity(lstm, torch.randn(5, 7, 3), gates={"lstm": lstm}).frame
    >>> frame.groupby("gate", sort=False)["time"].max().to_dict()
    {'lstm.input': 7, 'lstm.forget': 7, 'lstm.output': 7}

    Args:
        model: any module with a `HighwayBlock` in it. A block that is used twice has rows for each use.
        x: inputs, (sample, ...), as `gradient_flow` takes them.
        y: integer labels (sample,), for the means per class; a class without inputs has no rows.
        gates: which gates, in place of those of HighwayBlocks. By a name of one's own a module of the model, or that
            module's name: its output is the gate's activity; of nn.LSTM, nn.LSTMCell, nn.GRU and nn.GRUCell it is
            their gates "input", "forget" and "output", or "reset" and "update" (which keeps the state where it is 1).
            Or by a module's name a function, of its output to the gate's activity.

    Returns:
        T in [0, 1]; a unit of a convolutional block is a channel, its T averaged over positions. `layer` counts as in
        `gradient_flow`: from 1, plain layers included, so that a HighwayNet's gates are those of layers 2..depth.
        nan where the net has diverged. A gate that was given goes with the last layer that had run before it ended.

    What it cannot measure: a HighwayBlock of a subclass with a forward of its own, whose gate may do something else;
    gates whose first axis is not that of the samples (packed sequences, batch_first=False): these are refused.

    Raises:
        ValueError, TypeError: no `gates` and a model that runs no HighwayBlock, or one with a forward of its own; gates
            that are no modules of the model or leave [0, 1]; an empty or non-finite batch, labels that do not fit.

    Source: Srivastava, Greff, Schmidhuber 2015 (arXiv:1507.06228), section 4.1.
    """
    call = "gate_activity"
    copied = float64_copy(call, model).eval()
    inputs = check_input(call, model, x)
    classes, of_class = check_classes(call, inputs, y)
    one_pass = (partial(gates_of_blocks, call) if gates is None
                else partial(given_gates, call, check_gates(call, model, gates)))
    with RandomState(inputs.device).replayed():   # gradients stay on: a model's forward may differentiate
        means = means_by_use(call, one_pass, copied, inputs, len(classes), of_class)
    biases = None if gates is not None else {use: copied.get_submodule(use.module).gate_bias for use in means}
    return GateActivity(frame_by_unit(means, biases), None if y is None else frame_by_class(means, classes, biases))


# --- measuring -------------------------------------------------------------------------------------------------------


def means_by_use(call: str, one_pass: Callable[[nn.Module, Inputs], Gates], model: nn.Module, inputs: Inputs,
                 classes: int, of_class: Int64[Tensor, " sample"]) -> Means:
    """Mean activity of every use of a gate: (unit,) over all inputs, and (class, unit) over those of each class."""
    sums: dict[GateUse, Tensor] = {}
    for start in range(0, len(inputs), CHUNK):
        gates = one_pass(model, inputs[start:start + CHUNK])
        if start == 0:
            sums = {use: t.new_zeros(classes, t.shape[1]) for use, t in gates.items()}
        if not gates or gates.keys() != sums.keys():
            raise RefusalError(f"{call}: `model` must run the same gates whatever the input, at least one, got "
                               f"{type(model).__name__}, which does not. Pass the part of it that does.")
        for use, t in gates.items():
            sums[use].index_add_(0, of_class[start:start + CHUNK].to(t.device), t)
    samples = torch.bincount(of_class, minlength=classes).unsqueeze(1)
    return {use: (total.sum(0) / len(inputs), total / samples.to(total.device)) for use, total in sums.items()}


# --- frames ----------------------------------------------------------------------------------------------------------

Biases = dict[GateUse, Float64[Tensor, " unit"]]


def columns_of(use: GateUse, biases: Biases | None) -> dict[str, object]:
    """The columns that name a gate and its use; `gate_bias` is a HighwayBlock's, which has a single gate."""
    if biases is not None:
        return {"layer": use.layer, "module": use.module}
    return use._asdict() | {"stack_layer": pd.NA if use.stack_layer is None else use.stack_layer}


def frame_by_unit(means: Means, biases: Biases | None) -> pd.DataFrame:
    def rows(use: GateUse, overall: Tensor) -> pd.DataFrame:
        own = {} if biases is None else {"gate_bias": biases[use].cpu().numpy()}
        return pd.DataFrame(columns_of(use, biases) | {"unit": range(len(overall))} | own
                            | {"activity": overall.cpu().numpy()})

    return one_frame([rows(use, overall) for use, (overall, _) in means.items()])


def frame_by_class(means: Means, classes: Int64[Tensor, " class"], biases: Biases | None) -> pd.DataFrame:
    def rows(use: GateUse, overall: Tensor, of_class: ClassMeans) -> pd.DataFrame:
        units = len(overall)
        return pd.DataFrame(columns_of(use, biases) | {
            "class": classes.repeat_interleave(units).cpu().numpy(),
            "unit": torch.arange(units).repeat(len(classes)).numpy(),
            "activity": of_class.flatten().cpu().numpy(),
            "difference": (of_class - overall).flatten().cpu().numpy(),
        })

    return one_frame([rows(use, *both) for use, both in means.items()])


def one_frame(parts: list[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(parts, ignore_index=True)
    return frame.astype({"stack_layer": "Int64"}) if "stack_layer" in frame else frame


# --- checks ----------------------------------------------------------------------------------------------------------


def check_classes(call: str, inputs: Inputs,
                  y: Tensor | None) -> tuple[Int64[Tensor, " class"], Int64[Tensor, " sample"]]:
    """The classes that occur, ascending, and for each input the position of its own among them."""
    if y is None:
        return tuple(torch.zeros(size, dtype=torch.int64, device=inputs.device) for size in (1, len(inputs)))
    if not isinstance(y, Tensor):
        raise RefusalTypeError(f"{call}: `y` must be a tensor of labels, got {type(y).__name__}. Use torch.as_tensor.")
    if y.shape != (len(inputs),) or y.is_floating_point():
        raise RefusalError(f"{call}: `y` must be one integer label per sample, shape ({len(inputs)},), got {y.dtype} "
                           f"of shape {tuple(y.shape)}. Pass None for the overall mean alone.")
    return y.to(inputs.device, torch.int64).unique(return_inverse=True)
