"""Per-layer gradient, error-signal and activation statistics of one batch, for one model or a stack of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .backward import (
    Calls,
    Pass,
    Probe,
    Scaled,
    Segment,
    dry_run,
    forward_and_back,
    functions_of,
    segments_of,
    stacked_segments,
)
from .chain import Function, chain_parts
from .copies import check_input, float64_copy, untouched_random_state
from .drawn import Drawn
from .layers import describe, hooks, layers_of, weights_of
from .verdict import Verdict, backward_slope, slope_error, verdict_of

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}

STATISTICS = ("log10_weight_gradient_norm", "log10_error_signal_norm", "activation_mean", "activation_mean_square",
              "zero_fraction", "activation_correlation", "error_signal_spread", "gradient_zero_fraction",
              "gradient_subnormal_fraction")
LOG10_2 = math.log10(2.0)
SMALLEST_NORMAL = -126.0  # log2 of float32's smallest normal number: digits are lost below, and all below 2**-149


@dataclass(frozen=True)
class GradientFlow(Drawn):
    """What `gradient_flow` found.

    Attributes:
        frame: a row per layer in execution order: `layer` (1 is next to the input), `module`, `type`, `parameters`,
            `positions` (places of one sample at which the weights act: pixels, tokens; 1 if fully connected), and the
            statistics that `gradient_flow` describes.
        log10_input_gradient_norm: of d loss / d input over the whole batch; nan for integer inputs.
        loss: its value, in the loss's own units.
    """

    frame: pd.DataFrame
    log10_input_gradient_norm: float
    loss: float

    drawn_by = "gradient_flow"

    @property
    def slope(self) -> float:
        """Change of ln ||error signal||^2 per layer on the way back to the input; negative is vanishing.

        The least-squares slope over the layers with a finite norm; nan where there are fewer than two.  A change of
        `positions` (pooling, striding) changes the norm whatever the weights are, and does not count.
        """
        return backward_slope(self.frame)

    @property
    def slope_error(self) -> float:
        """Standard error of `slope`, layers taken as independent factors: the log norm is a random walk with drift."""
        return slope_error(self.frame)

    @property
    def verdict(self) -> Verdict:
        """vanishing, exploding, chaotic, dead or stable, and the sentence that says from which layer and how fast."""
        return verdict_of(self.frame)

    @property
    def drawn_with(self) -> dict[str, object]:
        return {"title": str(self.verdict)}

    def __repr__(self) -> str:
        return f"GradientFlow of {len(self.frame)} layers: {self.verdict}"


@dataclass(frozen=True)
class Comparison(Drawn):
    """What `compare` found.

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


def gradient_flow(model: nn.Module, x: Tensor, y: Tensor | None = None, *, loss: str | Loss = "cross_entropy",
                  samples: int | None = None) -> GradientFlow:
    """How far the gradient gets: per-layer norms of the weight gradient and of the error signal, on one batch.

    Measured in float64 on a copy; the model, its gradients, its mode and the global random state stay as they are.
    The layers are `model.hidden_layers` where the model lists them (flowstudy's nets: `layer` is then the paper's
    1..depth), else every module that holds weights itself, once per use.  Where the model is a chain of layers that
    torch.fx can trace, norms have no floor: the error signal has an exponent of its own at every layer, and 1e-400 is
    -400.  Elsewhere what falls below float64's 1e-323 counts as 0.

    Args:
        model: any module; the batch runs in the mode the model is in.  Where its output is not one tensor, give a
            `loss` that takes it.
        x: inputs, (sample, ...), on the model's device.
        y: targets, as the loss takes them; None replaces the loss by a fixed random linear read-out of the output,
            weights N(0, 1 / outputs), averaged over samples: what the theory of gradient norms assumes.
        loss: "cross_entropy", "mse", or a function (output, y) -> scalar. A mean over samples keeps its units.
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

    Raises:
        ValueError, TypeError: a model without weights, an empty or non-finite batch, labels that do not fit.

    Source: Glorot & Bengio 2010 (section 4: back-propagated gradients by layer).
    """
    call = "gradient_flow"
    probe = float64_copy(call, model)
    x = check_input(call, model, x)
    if samples is not None:
        if not 1 <= samples <= len(x):
            raise ValueError(f"{call}: `samples` must be between 1 and the batch's {len(x)}, got {samples}.")
        x, y = x[:samples], None if y is None else y[:samples]
    layers = layers_of(call, probe)
    objective = check_loss(call, loss, y)
    statistics, calls, found = measure(call, probe, layers, x, y, objective, loss)
    columns = {name: values.cpu().numpy() for name, values in statistics.items()}
    at_input = found.input_gradient
    shapes = [shape for of_segment in calls.shapes for shape in of_segment]
    return GradientFlow(
        frame=pd.DataFrame(describe(layers, calls.layers, shapes) | columns),
        log10_input_gradient_norm=math.nan if at_input is None else log10_norm([at_input], 0).item(),
        loss=found.loss.item(),
    )


def compare(models: Mapping[str, nn.Module], x: Tensor, y: Tensor | None = None, *,
            loss: str | Loss = "cross_entropy", samples: int | None = None) -> Comparison:
    """`gradient_flow` of several models on the same batch, in one frame and one picture.

    Args:
        models: by the name to show; the rest as `gradient_flow` takes it.
    """
    if not isinstance(models, Mapping) or not models:
        raise TypeError(f"compare: `models` must be a mapping of names to models, got {type(models).__name__}. "
                        "Pass {'plain': model_a, 'highway': model_b}.")
    flows = {str(name): gradient_flow(model, x, y, loss=loss, samples=samples) for name, model in models.items()}
    frame = pd.concat([flow.frame.assign(model=name) for name, flow in flows.items()], ignore_index=True)
    return Comparison(frame[["model", *frame.columns.drop("model")]], {k: flow.verdict for k, flow in flows.items()})


class UntrainableError(AssertionError):
    """What `assert_trainable` raises; `verdict` tells more."""

    def __init__(self, verdict: Verdict):
        super().__init__(f"assert_trainable: the gradient flow is {verdict} {verdict.advice}")
        self.verdict = verdict


def assert_trainable(model: nn.Module, x: Tensor, y: Tensor | None = None, *, loss: str | Loss = "cross_entropy",
                     samples: int | None = None) -> Verdict:
    """For a test suite of one's own: raises unless the verdict of `gradient_flow` is stable, and returns the verdict.

    Raises:
        UntrainableError, an AssertionError: the message is the verdict.
    """
    verdict = gradient_flow(model, x, y, loss=loss, samples=samples).verdict
    if verdict.kind != "stable":
        raise UntrainableError(verdict)
    return verdict


def stacked_gradient_flow(model: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor | None, *,
                          loss: str | Loss = "cross_entropy") -> dict[str, Tensor]:
    """The statistics of every net of a stack, (net, layer) each; `model` is one of them, the template.

    Equal to `gradient_flow` of each net alone.

    Args:
        model: a module of the stack's structure; its own weights do not matter.
        state: parameters by name, stacked along a leading net axis.
        x: inputs (sample, ...) and y labels (sample,), shared by the nets.
    Returns:
        By name, and `log10_input_gradient_norm`, (net,).
    """
    call = "gradient_flow"
    probe = float64_copy(call, model)
    layers = layers_of(call, probe)
    objective = check_loss(call, loss, y)
    statistics, _, found = measure(call, probe, layers, x.double(), y, objective, loss, state)
    return statistics | {"log10_input_gradient_norm": log10_norm([found.input_gradient], 1)}


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(call: str, model: nn.Module, layers: dict[str, nn.Module], x: Tensor, y: Tensor | None, objective: Loss,
            loss: str | Loss, state: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], Calls, Pass]:
    """Every statistic, (layer,), or (net, layer) of a stack; which layers were called; and the pass itself."""
    probe = Probe()
    nets: tuple[int, ...] = ()
    with hooks(layers, probe):
        with untouched_random_state(x.device):
            output = check_labels(call, model, x, loss, y)
        functions = [model]
        if not isinstance(output, Tensor):  # the loss knows what to make of it: it becomes the model's last step
            functions, objective = [lambda h: loss(model(h), y)], lambda value, _: value
        elif state is None or chain_parts(model) is not None:  # a stack of other models is not cut
            with untouched_random_state(x.device):
                functions = functions_of(model, layers, x)
        segments, calls = run_dry(functions, x, probe)
        if isinstance(output, Tensor) and not torch.equal(calls.output.nan_to_num(), output.nan_to_num()):
            segments, calls = run_dry([model], x, probe)  # tracing missed something: do without
        weights = weights_of(model, layers, calls.layers)
        wanted = {name for names in weights.values() for name in names}
        if state is None:
            leaves = {name: p.requires_grad_() for name, p in model.named_parameters() if name in wanted}
        else:
            nets = (len(next(iter(state.values()))),)
            state = {name: value.detach().double().requires_grad_(name in wanted) for name, value in state.items()}
            leaves = {name: state[name] for name in wanted}
            segments = stacked_segments(chain_parts(model) or [model], model, state, probe)
            x, objective = x.expand(*nets, *x.shape), torch.func.vmap(objective, in_dims=(0, None))
        with untouched_random_state(x.device):
            found = forward_and_back(segments, calls, leaves, x, y, objective, nets)
    return statistics_of(found, [weights[name] for name in calls.layers], len(nets), x.shape[len(nets)]), calls, found


def run_dry(functions: list[Function], x: Tensor, probe: Probe) -> tuple[list[Segment], Calls]:
    """The functions as segments and what they call; the random state is as before, so that dropout repeats its mask."""
    segments = segments_of(functions, probe)
    with untouched_random_state(x.device):
        return segments, dry_run(segments, x, probe)


@torch.no_grad()
def statistics_of(found: Pass, weights: list[list[str]], lead: int, samples: int) -> dict[str, Tensor]:
    gradients = [[found.gradients[name] for name in names if name in found.gradients] for names in weights]
    spread = [nothing(found) if e is None else error_spread(e, lead, samples) for e in found.errors]
    lost = [lost_fractions(parts, lead) if parts else (nothing(found),) * 2 for parts in gradients]
    flat = [h.flatten(lead) for h in found.outputs]
    columns = (
        [log10_norm(parts, lead) if parts else nothing(found) for parts in gradients],
        [nothing(found) if e is None else log10_norm([e], lead) for e in found.errors],
        [h.mean(-1) for h in flat],
        [h.square().mean(-1) for h in flat],
        [(h == 0).double().mean(-1) for h in flat],
        [correlation(h, lead, samples) for h in found.outputs],
        spread,
        [zero for zero, _ in lost],
        [subnormal for _, subnormal in lost],
    )
    return {name: torch.stack(column, -1) for name, column in zip(STATISTICS, columns, strict=True)}


def nothing(found: Pass) -> Tensor:
    return torch.full_like(found.loss, torch.nan)


def log10_norm(parts: list[Scaled], lead: int) -> Float[Tensor, "*net"]:
    """log10 of the joint Frobenius norm; squares are taken of entries near 1, so that none is lost."""
    parts = [part.normalised() for part in parts]
    exponent = torch.stack([part.exponent for part in parts]).amax(0)
    live = [(part.tensor.flatten(lead), part.exponent - exponent) for part in parts]
    squares = sum(tensor.square().sum(-1) * torch.exp2(2 * shift) for tensor, shift in live)
    return torch.where(squares == 0, -torch.inf, 0.5 * torch.log10(squares) + exponent * LOG10_2)


def error_spread(error: Scaled, lead: int, samples: int) -> Float[Tensor, "*net"]:
    """Standard deviation over samples of log10 ||dL/dh||, of the samples in which it is not 0."""
    tensor = error.normalised().tensor
    if tensor.ndim <= lead + 1 or tensor.shape[lead] != samples:
        return torch.full_like(error.exponent, torch.nan)
    norms = torch.linalg.vector_norm(tensor.flatten(lead + 1), dim=-1)
    live = norms > 0
    logs = torch.where(live, norms.log10(), 0.0)
    count = live.sum(-1)
    mean = logs.sum(-1) / count
    squares = torch.where(live, (logs - mean.unsqueeze(-1)).square(), 0.0).sum(-1)
    return torch.where(count > 1, (squares / (count - 1)).sqrt(), torch.nan).masked_fill(norms.isnan().any(-1),
                                                                                        torch.nan)


def correlation(h: Tensor, lead: int, samples: int) -> Float[Tensor, "*net"]:
    """Mean cosine between two samples: |sum of unit vectors|^2 holds every pair twice and each sample once."""
    if samples < 2 or h.ndim <= lead + 1 or h.shape[lead] != samples:
        return torch.full(h.shape[:lead], torch.nan, dtype=h.dtype, device=h.device)
    unit = F.normalize(h.flatten(lead + 1), dim=-1, eps=0.0)
    return (unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))) / (samples * (samples - 1))


def lost_fractions(parts: list[Scaled], lead: int) -> tuple[Float[Tensor, "*net"], Float[Tensor, "*net"]]:
    """Share of the entries that are exactly 0, and that are not but below float32's normal numbers."""
    zeros, subnormal, entries = 0.0, 0.0, 0
    for part in parts:
        size = part.tensor.flatten(lead).abs()
        zeros = zeros + (size == 0).double().sum(-1)
        low = (size > 0) & (size.log2() < SMALLEST_NORMAL - part.exponent.unsqueeze(-1))
        subnormal = subnormal + low.double().sum(-1)
        entries += size.shape[-1]
    return zeros / entries, subnormal / entries


# --- checks ----------------------------------------------------------------------------------------------------------


def check_loss(call: str, loss: str | Loss, y: Tensor | None) -> Loss:
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"{call}: `loss` must be one of {', '.join(LOSSES)} or a function (output, y), got {loss!r}.")
    return random_readout if y is None else LOSSES[loss]


def random_readout(output: Tensor, _y: None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    flat = output.flatten(1)
    weights = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64) / flat.shape[1] ** 0.5
    return (flat @ weights.to(flat.device)).mean()


@torch.no_grad()
def check_labels(call: str, model: nn.Module, x: Tensor, loss: str | Loss, y: object) -> object:
    """The model's output: one tensor which the labels fit, or whatever a loss of the user's own takes."""
    output = model(x)
    if callable(loss):
        return output
    if not isinstance(output, Tensor):
        raise ValueError(f"{call}: `model` must return one tensor, got {type(output).__name__}. "
                         "Pass `loss=`, a function (output, y) -> scalar that takes what it returns.")
    if y is None:
        return output
    if not isinstance(y, Tensor):
        raise TypeError(f"{call}: `y` must be a tensor of targets, got {type(y).__name__}. Use torch.as_tensor.")
    if loss != "cross_entropy":
        return output
    if len(y) != len(output):
        raise ValueError(f"{call}: `y` must have one label per sample, got {len(y)} labels for {len(output)} samples.")
    if not y.is_floating_point() and (y.min() < 0 or y.max() >= output.shape[1]):
        raise ValueError(f"{call}: `y` must hold labels from 0 to {output.shape[1] - 1}, the model's outputs, "
                         f"got {int(y.min())} to {int(y.max())}.")
    return output
