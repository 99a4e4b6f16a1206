"""gradient_flow: gradients, error signals and activations of one batch by layer, with the slope and the verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import nn

from flowstudy.arguments import is_whole
from flowstudy.measure.drawn import Drawn
from flowstudy.measure.models.context import in_own_context
from flowstudy.measure.models.copies import check_module, float64_copy
from flowstudy.measure.models.inputs import Inputs, Shown, check_input, check_samples_apart
from flowstudy.measure.models.precision.attempts import in_float64, measured_targets
from flowstudy.names import LossName
from flowstudy.refusal import RefusalError, RefusalTypeError

from .losses import Loss, Objective
from .one_model import measure_model
from .over_time import decisive, time_frame
from .signal import backward_slope, path_frame, slope_error
from .verdict import THRESHOLD, Verdict, verdict_of


@dataclass(frozen=True)
class GradientFlow(Drawn):
    """The result of `gradient_flow`.

    Attributes:
        frame: a row per layer in execution order: `layer` (1 is next to the input), `module`, `type`, `parameters`,
            `positions` (places of one sample at which the weights act: pixels, tokens; 1 if fully connected),
            `trainable` (its weights require gradients), `main_path` (whether every way from the input to the loss runs
            through its output: not so inside a residual branch), `weight_zero_fraction` (share of its weights that are
            exactly 0), and the statistics that `gradient_flow` describes.  Where nn.LSTM, nn.GRU or nn.RNN are among
            the layers also `time` (the step of the input sequence, from 1), `direction` ("forward" or "backward") and
            `stack_layer` (1 is next to the input); these are NA and "" in the rows of other layers.
        path: the values that the verdict reads, a row for each value of the main path, from the input on.  `layer` is
            the last layer at or before the value, which is that layer's output or a sum that follows it; 0 is the
            input, listed where many layers come before the first value.  `log10_error_signal_norm` and
            `activation_mean_square` are those of the value, `averaged_positions` is the number of positions that are
            averaged over between the value and the last row.  `log10_signal` is the norm corrected for that averaging;
            if the net normalises, it is that of ||dL/dh|| rms(h), which does not depend on scales before a
            normalisation.  A recurrent net has a row per `step` of the recurrence instead, in the order in which they
            ran.  Norms are then of d loss / d state, the state being all outputs of a cell, (h, c) for an LSTM;
            `log10_carried_norm` is the last step's error signal pulled back to this step, and `log10_signal` the norm
            without the growth from losses that are added at each step.  Where sequences differ in length, norms are
            over those that end at the last step.  In a loop without layers, `layer` is the last layer that the part
            read at the step was computed from, and `log10_part_norm` is the norm of d loss / d that part.
        normalises: whether the net normalises values by the statistics of the batch or of each sample: batch norm in
            training mode, layer, group, instance or RMS norms.
        input_mean_square: mean over samples and entries of x, the first input of real numbers; nan for integer inputs.
        running_statistics: number of batch norm layers that were in evaluation mode.
        log10_input_gradient_norm: log10 of the norm of d loss / d input over the whole batch, all real inputs together;
            nan for integer inputs.
        loss: its value, in the loss's own units.
        dtype: the coarsest dtype in which the model computed: "float64", or "float32" where the model casts inside, as
            the RMS norms of many language models do; the numbers then have that dtype's digits and range.
        repeatable: False if a second pass of a fresh copy, from the same random state, gave another output; the numbers
            are then those of one pass only.
        detached: by layer called in a loop, the number of calls whose input came from the layer's own earlier output
            without a gradient (`detach()`); no error signal crosses there.
        unread: names of recurrent modules whose time steps cannot be seen: subclasses with a forward of their own, and
            those inside a module of `hidden_layers`.
    """

    frame: pd.DataFrame
    path: pd.DataFrame
    log10_input_gradient_norm: float
    loss: float
    normalises: bool = False
    input_mean_square: float = math.nan
    running_statistics: int = 0
    dtype: str = "float64"
    repeatable: bool = True
    unread: tuple[str, ...] = ()
    detached: Mapping[str, int] = field(default_factory=dict)

    drawn_by = "gradient_flow"

    @property
    def slope(self) -> float:
        """Change of ln signal^2 per layer, or time step, on the way back to the input; negative is vanishing.

        The least-squares slope over the places of `path` with a finite `log10_signal`; nan where there are fewer than
        two.
        """
        return backward_slope(self.path)

    @property
    def slope_error(self) -> float:
        """Standard error of `slope`, layers taken as independent factors: the log norm is a random walk with drift."""
        return slope_error(self.path)

    @property
    def verdict(self) -> Verdict:
        """vanishing, exploding, chaotic, dead, cut off, stable, or cannot tell; and the sentence that says where.

        It speaks of the signal on this batch at the present weights.  It knows no learning rate, no optimiser and no
        data beyond the batch, and so not whether the net will learn: see `Verdict`.
        """
        notes = {"input_mean_square": self.input_mean_square, "running_statistics": self.running_statistics,
                 "detached": self.detached}
        return verdict_of(self.frame, self.path, normalises=self.normalises, unread=self.unread, notes=notes)

    @property
    def drawn_with(self) -> dict[str, object]:
        return {"path": self.path, "title": str(self.verdict)}

    def __repr__(self) -> str:
        coarse = "" if self.dtype == "float64" else f" The model computes in {self.dtype} inside."
        once = "" if self.repeatable else " A second pass gave another output: these are the numbers of one pass."
        return f"GradientFlow of {len(self.frame)} layers: {self.verdict}{coarse}{once}"


@dataclass(frozen=True)
class Comparison(Drawn):
    """The result of `compare`.

    Attributes:
        frame: the models' `gradient_flow` frames one below the other, the column `model` in front.
        verdicts: of each model.
    """

    frame: pd.DataFrame
    verdicts: dict[str, Verdict]

    drawn_by = "gradient_flow"

    @property
    def drawn_with(self) -> dict[str, object]:
        return {"title": "\n".join(f"{name}: {verdict}" for name, verdict in self.verdicts.items())}

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {verdict}" for name, verdict in self.verdicts.items())


@in_own_context
@in_float64
def gradient_flow(model: nn.Module, x: Shown, y: object = None, *, loss: LossName | Loss = "cross_entropy",
                  output: str | int | None = None, samples: int | None = None) -> GradientFlow:
    """How far the gradient gets: per-layer norms of the weight gradient and of the error signal, on one batch.

    Measured in float64 on a copy; the model, its gradients, its mode and the global random state stay as they are. What
    the model makes in its forward by default is float64 too, and so are the loss's weights and float targets; a model
    that does not run in float64 is measured in its own dtype, and `dtype` says so.  The numbers are those of autograd's
    own backward pass through one untouched forward pass, whatever the model does in between.  Where a norm leaves
    float64's range, that pass is made once more, cut wherever one value carries everything on, with an exponent of its
    own at every cut: 1e-400 is -400.  Within a part that has no such place, or whose backward pass is not linear
    (clipped gradients), what falls below 1e-323 counts as 0.

    The layers are `model.hidden_layers` where the model lists them (flowstudy's nets: `layer` is then the paper's
    1..depth), else every module that holds weights itself, once per use.  Of a module that computes with several
    weights of its own (F.linear, matrix products, a ParameterList), every use of each weight is a layer, called by the
    weight's name.

    nn.LSTM, nn.GRU and nn.RNN have a row for each time step of each stacked layer and direction.  They are run as a
    Python loop over their cell, and it is checked that the loop gives the module's own output.  h is the cell's output,
    and its error signal is the total d loss / d h_t over all later steps; the verdict also reads the way through an
    LSTM's c_t.  The weight gradient of a row is that of the weights, which all time steps share, as for any layer that
    is used many times.  The verdict reads such a net, and a loop over a cell or a layer, from the last state that the
    loss sees to the first: see `GradientFlow.path`.

    Args:
        model: any module; the batch runs in the mode the model is in.
        x: inputs, (sample, ...), on the model's device: a tensor, a tuple for model(*x), or a mapping for model(**x).
            Tensors whose first axis is as long as the first tensor's have an entry for each sample, others belong to
            all.  Real ones are differentiated, but for sparse ones and masks that hold -inf.
        y: targets; labels (sample, *position), of which -100 does not count, or probabilities for "cross_entropy"; as
            it takes them for a loss of your own.  None replaces the loss by a fixed random linear read-out of the
            output, weights N(0, 1 / outputs), averaged over samples: what the theory of gradient norms assumes.
        loss: "cross_entropy" (of outputs (sample, class, *position), or (sample, position, class) where that is what
            the labels fit), "mse", "output" for a model that returns its own loss (alone, as `loss`, or first of a
            tuple; it takes its labels in x), or a function (output, y) -> scalar.  A mean over samples keeps its units.
        output: which entry of a tuple, a mapping or a dataclass the loss is of.  None is the entry "logits" where there
            is one, else the only tensor of real numbers; a function of your own then takes the output as it is.
        samples: use the first so many samples only.

    Returns:
        Per layer, h being its output:
        `log10_weight_gradient_norm`, `log10_error_signal_norm`: log10 of the Frobenius norm of dL/dW (biases left out)
        and of dL/dh, over the whole batch: -inf is an exact 0, nan a diverged net or a layer that the loss does not
        see.  `activation_mean`, `activation_mean_square`, `zero_fraction`: over samples and units of h, the last the
        share of exact zeros.  `activation_correlation`: cosine between the h of two samples, mean over all pairs (c in
        mean-field theory).  `error_signal_spread`: standard deviation over samples of log10 ||dL/dh||; both are nan
        for fewer than two samples.  `gradient_zero_fraction`, `gradient_subnormal_fraction`: share of the weight
        gradient's entries that are exactly 0, and that are not 0 but below float32's smallest normal number, 1.2e-38.
        `gradient`: "value"; "zero", exactly 0; or "none": the loss does not depend on the layer's weights, or they are
        frozen, as autograd's None says; `trainable` tells the two apart.

    Raises:
        ValueError, TypeError: a model without weights, an empty or non-finite batch, labels that do not fit, an output
            of several tensors of which none is named.

    What it cannot measure: a part of the model that torch differentiates for `.backward()` alone (checkpointing with
    use_reentrant=True), and layers that are called inside torch.func.vmap: both are refused; layers of compiled
    modules, which show as one, and scripted modules, which are refused.  Of what the model holds and Python cannot
    copy (an open file, a generator) the copy uses the model's own.

    Source: Glorot & Bengio 2010 (section 4: back-propagated gradients by layer).

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> flow = gradient_flow(net, torch.eye(3), torch.tensor([0, 1, 1]))
    >>> flow.frame[["layer", "module", "gradient"]].values.tolist()
    [[1, '0', 'value'], [2, '2', 'value']]
    """
    call = "gradient_flow"
    check_module(call, model)
    objective = Objective.measured(call, loss, output)
    inputs, y = check_input(call, model, x), measured_targets(model, y)
    if samples is not None:
        if not is_whole(samples) or not 1 <= samples <= len(inputs):
            raise RefusalError(f"{call}: `samples` must be between 1 and the batch's {len(inputs)}, got {samples}.")
        check_samples_apart(call, inputs)
        inputs, y = inputs[:samples], None if y is None else y[:samples]
    found = measure_model(call, model, lambda: float64_copy(call, model, frozen=False), inputs, y, objective)
    columns = {name: values.cpu().numpy() for name, values in found.statistics.items()}
    return GradientFlow(
        frame=pd.DataFrame(found.layers | columns | {"gradient": found.gradient}),
        path=decisive(path_frame(found.path, found.layers["type"], found.normalises),
                      *([time_frame(columns) for columns in paths] for paths in (found.time_paths, found.bare_paths)),
                      THRESHOLD),
        normalises=found.normalises,
        input_mean_square=mean_square_of(inputs),
        running_statistics=sum(not layer.training and layer.running_mean is not None for layer in model.modules()
                               if isinstance(layer, torch.nn.modules.batchnorm._NormBase)),
        log10_input_gradient_norm=found.log10_input_gradient_norm.item(),
        loss=found.loss.item(),
        dtype=str(found.dtype).removeprefix("torch."),
        repeatable=found.repeatable,
        unread=tuple(found.unread),
        detached=found.detached,
    )


def mean_square_of(inputs: Inputs) -> float:
    """Mean square of the entries of the first input of real or complex numbers; nan where there is none."""
    x = next(iter(inputs.differentiable.values()), None)
    return math.nan if x is None else x.abs().square().mean().item()


def compare(models: Mapping[str, nn.Module], x: Shown, y: object = None, *, loss: LossName | Loss = "cross_entropy",
            output: str | int | None = None, samples: int | None = None) -> Comparison:
    """`gradient_flow` of several models on the same batch, in one frame and one picture.

    Args:
        models: by the name to show; the rest as `gradient_flow` takes it.

    Returns:
        A Comparison: `.frame`, `.verdicts` by name, `.plot()`.

    What it cannot measure: as `gradient_flow`, whose errors it raises.

    >>> nets = {name: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for name in ("one", "another")}
    >>> compare(nets, torch.eye(3), torch.tensor([0, 1, 1])).frame["model"].tolist()
    ['one', 'one', 'another', 'another']
    """
    if not isinstance(models, Mapping) or not models:
        raise RefusalTypeError(f"compare: `models` must be a mapping of names to models, got {type(models).__name__}. "
                               "Pass {'plain': model_a, 'highway': model_b}.")
    flows = {str(name): gradient_flow(model, x, y, loss=loss, output=output, samples=samples)
             for name, model in models.items()}
    frame = pd.concat([flow.frame.assign(model=name) for name, flow in flows.items()], ignore_index=True)
    return Comparison(frame[["model", *frame.columns.drop("model")]], {k: flow.verdict for k, flow in flows.items()})
