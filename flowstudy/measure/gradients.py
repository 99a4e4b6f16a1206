"""Per-layer gradient, error-signal and activation statistics of one batch, for one model or a stack of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .copies import check_input, float64_copy, untouched_random_state
from .layers import Calls, called_layers, describe, hooks, layers_of, weights_of

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}

STATISTICS = ("log10_weight_gradient_norm", "log10_error_signal_norm", "activation_mean", "activation_mean_square",
              "zero_fraction")


@dataclass(frozen=True)
class GradientFlow:
    """What `gradient_flow` found.

    Attributes:
        frame: a row per layer in execution order: `layer` (1 is next to the input), `module`, `type`, `parameters`,
            `log10_weight_gradient_norm`, `log10_error_signal_norm`, `activation_mean`, `activation_mean_square`,
            `zero_fraction`.
    """

    frame: pd.DataFrame

    @property
    def slope(self) -> float:
        """Change of ln ||error signal||^2 per layer on the way back to the input; negative is vanishing.

        The least-squares slope over the layers with a finite norm; nan where there are fewer than two.
        """
        return backward_slope(self.frame)


def gradient_flow(model: nn.Module, x: Tensor, y: Tensor | None = None, *, loss: str | Loss = "cross_entropy",
                  samples: int | None = None) -> GradientFlow:
    """How far the gradient gets: per-layer norms of the weight gradient and of the error signal, on one batch.

    Measured in float64 on a copy; the model, its gradients, its mode and the global random state stay as they are.
    The layers are `model.hidden_layers` where the model has that (flowstudy's nets: `layer` is then the paper's
    1..depth), else every module that holds weights itself, once per use.

    Args:
        model: any module; the batch runs in the mode the model is in.
        x: inputs, (sample, ...), on the model's device.
        y: targets, as the loss takes them; None replaces the loss by a fixed random linear read-out of the output,
            weights N(0, 1 / outputs), averaged over samples: what the theory of gradient norms assumes.
        loss: "cross_entropy", "mse", or a function (output, y) -> scalar. A mean over samples keeps its units.
        samples: use the first so many samples only.

    Returns:
        Norms are Frobenius norms over the whole batch and the layer's output (error signal dL/dh, h the layer's
        output) or weights (dL/dW; biases left out), as log10: -inf is an exact 0, nan a diverged net or a layer
        that the loss does not see.  `activation_mean` and `activation_mean_square` are over samples and units of h,
        `zero_fraction` is the share of exact zeros in it.

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
    with untouched_random_state(x.device):
        calls = called_layers(call, probe, layers, x)
        check_labels(call, calls.output, loss, y)
        state = dict(probe.named_parameters())
        statistics = measure(probe, layers, calls, state, x, y, objective)
    columns = {name: values.cpu().numpy() for name, values in statistics.items()}
    return GradientFlow(pd.DataFrame(describe(layers, calls) | columns))


def stacked_gradient_flow(model: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The statistics of every net of a stack, (net, layer) each; `model` is one of them, the template.

    Equal to `gradient_flow` of each net alone.

    Args:
        model: a module of the stack's structure; its own weights do not matter.
        state: parameters by name, stacked along a leading net axis.
        x: inputs (sample, ...) and y labels (sample,), shared by the nets.
    """
    probe = float64_copy("gradient_flow", model)
    layers = layers_of("gradient_flow", probe)
    calls = called_layers("gradient_flow", probe, layers, x.double())
    double = {name: value.double() for name, value in state.items()}
    return measure(probe, layers, calls, double, x.double(), y, F.cross_entropy, stacked=True)


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(model: nn.Module, layers: dict[str, nn.Module], calls: Calls, state: dict[str, Tensor], x: Tensor,
            y: Tensor | None, objective: Loss, stacked: bool = False) -> dict[str, Tensor]:
    """Every statistic, (layer,), or (net, layer) of a stack.

    A zero, the tap, is added to each layer's output: the loss's gradient with respect to a tap is the error signal
    there.  Backward hooks would not work under vmap, nor beside an in-place ReLU; a tap does not mind either.
    """
    nets = [len(next(iter(state.values())))] if stacked else []
    taps = [x.new_zeros(*nets, *shape, dtype=torch.float64).requires_grad_() for shape in calls.shapes]
    state = {name: value.detach().requires_grad_() for name, value in state.items()}

    def tapped(state: dict[str, Tensor], taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []

        def tap(_name: str, output: Tensor) -> Tensor:
            outputs.append(output)
            return output + taps[len(outputs) - 1]

        with hooks(layers, tap):
            return objective(torch.func.functional_call(model, state, (x,)), y), outputs

    # Recorded activations must not be views into tensors that a later in-place operation changes: `output + tap` is
    # a new tensor, so what follows the layer never writes into `output`.
    losses, outputs = (torch.func.vmap(tapped) if stacked else tapped)(state, taps)
    weights = weights_of(model, layers, calls.names)
    wanted = sorted({p for names in weights.values() for p in names})
    gradients = torch.autograd.grad(losses.sum(), [state[p] for p in wanted] + taps, allow_unused=True)
    by_weight = dict(zip(wanted, gradients, strict=False))
    errors = gradients[len(wanted):]

    lead = len(nets)
    weight_norms = {name: log10_norm([by_weight[p] for p in weights[name]], lead) for name in weights}
    missing = torch.full(nets, torch.nan, dtype=torch.float64, device=x.device)
    with torch.no_grad():
        flat = [h.flatten(lead) for h in outputs]
        columns = (
            [missing if weight_norms[name] is None else weight_norms[name] for name in calls.names],
            [missing if e is None else log10_norm([e], lead) for e in errors],
            [h.mean(-1) for h in flat],
            [h.square().mean(-1) for h in flat],
            [(h == 0).double().mean(-1) for h in flat],
        )
    return {name: torch.stack(column, -1).detach() for name, column in zip(STATISTICS, columns, strict=True)}


def log10_norm(gradients: list[Tensor | None], lead: int) -> Float[Tensor, "*net"] | None:
    """log10 of the joint Frobenius norm, scaled first: squares of entries below 1e-162 are 0 even in float64."""
    parts = [g.flatten(lead) for g in gradients if g is not None]
    if not parts:
        return None
    scale = torch.stack([p.abs().amax(-1) for p in parts]).amax(0)
    safe = torch.where(scale > 0, scale, 1.0)
    squares = sum((p / safe.unsqueeze(-1)).square().sum(-1) for p in parts)
    return torch.log10(safe) + 0.5 * torch.log10(squares)


def backward_slope(frame: pd.DataFrame) -> float:
    """d ln ||error signal||^2 / d layer, towards the input; see `GradientFlow.slope`."""
    log_square = 2 * math.log(10) * frame["log10_error_signal_norm"].to_numpy()
    finite = np.isfinite(log_square)
    if finite.sum() < 2:
        return math.nan
    layer = frame["layer"].to_numpy()[finite] - frame["layer"][finite].mean()
    return -float(layer @ log_square[finite] / (layer @ layer))


# --- checks ----------------------------------------------------------------------------------------------------------


def check_loss(call: str, loss: str | Loss, y: Tensor | None) -> Loss:
    if y is None:
        return random_readout
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"{call}: `loss` must be one of {', '.join(LOSSES)} or a function (output, y), got {loss!r}.")
    return LOSSES[loss]


def random_readout(output: Tensor, _y: None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    flat = output.flatten(1)
    weights = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64) / flat.shape[1] ** 0.5
    return (flat @ weights.to(flat.device)).mean()


def check_labels(call: str, output: Tensor, loss: str | Loss, y: Tensor | None) -> None:
    if y is None or callable(loss):
        return
    if not isinstance(y, Tensor):
        raise TypeError(f"{call}: `y` must be a tensor of targets, got {type(y).__name__}. Use torch.as_tensor.")
    if loss != "cross_entropy":
        return
    if len(y) != len(output):
        raise ValueError(f"{call}: `y` must have one label per sample, got {len(y)} labels for {len(output)} samples.")
    if not y.is_floating_point() and (y.min() < 0 or y.max() >= output.shape[1]):
        raise ValueError(f"{call}: `y` must hold labels from 0 to {output.shape[1] - 1}, the model's outputs, "
                         f"got {int(y.min())} to {int(y.max())}.")
