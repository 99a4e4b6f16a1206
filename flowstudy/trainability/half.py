"""The share of the gradient that survives in a 16-bit format, by real passes in it, and the loss scale that saves more.

float16 has no number between 0 and 6e-8 and none above 65,504: small error signals become 0 on their way back, and
large ones infinite.  Multiplying the loss by S before the backward pass, and dividing the gradients by it afterwards,
moves them into the range.  bfloat16 has float32's range, and loses digits only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from flowstudy.measure.models.context import callers_modes_aside
from flowstudy.measure.models.copies import own_copy
from flowstudy.refusal import RefusalError

from .kernel.linearised import Linearised

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SCALES = tuple(2.0**k for k in range(0, 25, 2))   # of the loss; torch.amp.GradScaler begins at 2^16
AS_GOOD = 0.01                                    # a smaller scale is chosen if it saves at most this share less


@dataclass(frozen=True)
class Survival:
    """Attributes:
        frame: a row per layer: `module`, and what `survives` of the gradient of its weights, unscaled and `scaled` by
            `loss_scale`: the share of the squared gradient (by a pass in float64) at entries that a pass in `dtype`
            neither makes 0 nor infinite.
        loss_scale: the least power of 4 that leaves the worst layer within .01 of what any leaves it.
        dtype: "float16" or "bfloat16".
    """

    frame: pd.DataFrame
    loss_scale: float
    dtype: str


def survival(call: str, model: nn.Module, net: Linearised, dtype: str) -> Survival:
    """The survival of gradients on the batch of `net`, which has the weights of `model`, in the format `dtype`."""
    value = net.objective.value(net.outputs, net.y)
    exact = dict(zip(net.parameters, torch.autograd.grad(value, net.weights, retain_graph=True, allow_unused=True),
                     strict=True))
    exact = {name: g.double() for name, g in exact.items() if g is not None and g.any()}
    gradients = half_gradients(call, model, net, dtype)
    by_scale = {scale: by_layer(exact, gradients(scale)) for scale in SCALES}
    worst = {scale: found.min() if len(found) else 1.0 for scale, found in by_scale.items()}
    chosen = next(scale for scale in SCALES if worst[scale] >= max(worst.values()) - AS_GOOD)
    frame = pd.DataFrame({"survives": by_scale[1.0], "scaled": by_scale[chosen]}).rename_axis("module").reset_index()
    return Survival(frame, chosen, dtype)


def half_gradients(call: str, model: nn.Module, net: Linearised,
                   dtype: str) -> Callable[[float], dict[str, Tensor]]:
    """A function from a loss scale to the gradients by parameter, unscaled again; the forward pass is made once."""
    half = HALVES[dtype]
    copied = own_copy(call, model).to(half).requires_grad_(False)
    copied.train(net.probe.training)
    x, objective = net.x.to(half), net.objective.to(torch.float32)
    y = net.y.float() if net.y.is_floating_point() else net.y
    weights = {name: p.requires_grad_() for name, p in copied.named_parameters() if name in net.parameters}
    try:
        with callers_modes_aside(), net.state.replayed():
            output = objective.taken(x.call_model(copied), y)
            value = objective.value(output.float(), y)   # the loss in float32, as in automatic mixed precision
            torch.autograd.grad(value, list(weights.values()), retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise RefusalError(f"{call}: `dtype` must be one that the model runs in on {x.device}, got {dtype!r}: "
                           f"{str(error).splitlines()[0]}. Measure on another device, or leave `dtype` out.") from None

    def scaled(scale: float) -> dict[str, Tensor]:
        with callers_modes_aside():
            found = torch.autograd.grad(value * scale, list(weights.values()), retain_graph=True, allow_unused=True)
        return {name: g.double() / scale for name, g in zip(weights, found, strict=True) if g is not None}

    return scaled


def by_layer(exact: dict[str, Tensor], found: dict[str, Tensor]) -> pd.Series:
    """Share of the squared gradient of each module's own parameters at entries that are neither 0 nor infinite."""
    kept: dict[str, float] = {}
    whole: dict[str, float] = {}
    for name, g in exact.items():
        layer = name.rpartition(".")[0]
        alive = found[name].isfinite() & (found[name] != 0) if name in found else torch.zeros_like(g, dtype=torch.bool)
        kept[layer] = kept.get(layer, 0.0) + g[alive].square().sum().item()
        whole[layer] = whole.get(layer, 0.0) + g.square().sum().item()
    return pd.Series({layer: kept[layer] / whole[layer] for layer in whole}, dtype="float64")
