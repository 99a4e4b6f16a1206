"""Causes for which a net does not train, as far as they can be seen before training, with advice against each."""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from flowstudy.measure import GradientFlow
from flowstudy.measure.gradients.verdict import cut_off, first_few

from .half import Survival

SMALL, LARGE = 1 / 30, 30.0   # inputs' root mean square outside of these does not fit weights drawn for unit inputs
FAR_OFF = 3.0                 # the outputs' scale is wrong if the loss exceeds that of constant outputs by this factor
ALIKE = 0.98                  # inputs have collapsed if two samples' cosine at the last hidden layer is above this
SURVIVES = 0.5                # least share of a layer's squared gradient that must survive in a 16-bit format
DEAD = 0.98                   # a layer is dead if this share of its outputs or more are exactly 0


@dataclass(frozen=True)
class Cause:
    """Attributes: name, a word or two; what was seen; what helps; sure: nets with it are not expected to train;
    decides: they do not, as they are asked about, whatever a trial saw.
    """

    name: str
    seen: str
    advice: str
    sure: bool = False
    decides: bool = False


def causes_of(model: nn.Module, flow: GradientFlow, outputs: Tensor, loss_at_start: float, constant: float,
              loss: object) -> list[Cause]:
    """All causes that apply, the surest first."""
    ways = [collapsed(flow), signal(flow)]
    found = [detached(flow), softmax_twice(outputs, loss), input_scale(flow), dead(flow),
             output_scale(loss_at_start, constant), saturated(model, flow),
             *(ways[::-1] if flow.verdict.kind == "vanishing" else ways)]
    return [cause for cause in found if cause is not None]


def detached(flow: GradientFlow) -> Cause | None:
    names = list(dict.fromkeys(cut_off(flow.frame)["module"]))
    if not names:
        return None
    return Cause("cut off", f"the loss does not depend on the weights of {first_few([repr(n) for n in names])}",
                 "Look for detach(), no_grad() or .data between these layers and the loss; freeze them with "
                 "requires_grad_(False) if that is meant.", sure=True, decides=True)


def underflow(found: Survival) -> list[Cause]:
    """The cause that more than half of a layer's squared gradient is lost in the 16-bit format without a loss scale."""
    worst = found.frame.sort_values("survives").head(1)
    if worst.empty or float(worst["survives"].iloc[0]) >= SURVIVES:
        return []
    name, kept = worst["module"].iloc[0], float(found.frame["scaled"].min())
    way_out = "Train in bfloat16 or float32." if kept < SURVIVES else (
        f"Multiply the loss by {found.loss_scale:,.0f} before the backward pass (torch.amp.GradScaler does): then at "
        f"least {kept:.0%} of every layer's survives; or train in bfloat16.")
    return [Cause(f"{found.dtype} underflow", f"{max(0.0, float(worst['survives'].iloc[0])):.0%} of the gradient of "
                  f"{name!r} survives in {found.dtype}", way_out, sure=True, decides=True)]


def softmax_twice(outputs: Tensor, loss: object) -> Cause | None:
    z = outputs.detach()
    if loss != "cross_entropy" or z.ndim < 2 or z.shape[1] < 2:
        return None
    sums = z.sum(1)
    if z.min() < 0 or not torch.allclose(sums, torch.ones_like(sums), atol=1e-6):
        return None
    return Cause("softmax before cross-entropy", "outputs are probabilities that add up to 1, and the loss takes their "
                 "softmax again", "Return the logits: cross_entropy takes the softmax itself.")


def input_scale(flow: GradientFlow) -> Cause | None:
    size = math.sqrt(flow.input_mean_square)
    if math.isnan(size) or SMALL <= size <= LARGE:
        return None
    return Cause("scale of the inputs", f"the inputs' root mean square is {size:.2g}",
                 "Standardise the inputs: mean 0, standard deviation 1.", sure=True)


def dead(flow: GradientFlow) -> Cause | None:
    """Layers whose outputs are 0, or behind whose activation no error signal comes through."""
    rows = flow.frame[flow.frame["zero_fraction"] >= DEAD]
    if rows.empty and flow.verdict.kind != "dead":
        return None
    seen = (flow.verdict.sentence.removeprefix("dead: ").rstrip(".") if rows.empty else
            f"{rows['zero_fraction'].iloc[0]:.0%} of the outputs of {rows['module'].iloc[0]!r} are exactly 0")
    return Cause("dead units", seen, "Set the biases to 0 and draw the weights anew (fs.initialize(model, "
                 "'he_normal')).")


def output_scale(loss_at_start: float, constant: float) -> Cause | None:
    if math.isfinite(loss_at_start) and not loss_at_start > FAR_OFF * constant:
        return None
    return Cause("scale of the outputs", f"the loss at the start is {loss_at_start:.3g}, and {constant:.3g} for "
                 "constant outputs",
                 "Scale the read-out's weights, or residual branches, down, or normalise before the read-out.")


def saturated(model: nn.Module, flow: GradientFlow) -> Cause | None:
    bounded = any(isinstance(m, nn.Sigmoid | nn.Tanh | nn.Hardtanh) for m in model.modules()) or any(
        getattr(m, "activation", None) in ("tanh", "sigmoid", "hard_tanh", "erf") for m in model.modules())
    if not bounded or flow.verdict.kind not in ("vanishing", "dead"):
        return None
    large = flow.frame["activation_mean_square"] > 9   # pre-activations of 3: slopes of tanh below .01
    if not large.any():
        return None
    name = flow.frame.loc[large, "module"].iloc[0]
    return Cause("saturated units", f"pre-activations at {name!r} have a root mean square of "
                 f"{math.sqrt(flow.frame.loc[large, 'activation_mean_square'].iloc[0]):.2g}",
                 "Draw smaller weights (variance 1 / fan_in), or normalise before the activations.")


def cosines(flow: GradientFlow) -> pd.DataFrame:
    """The layers at which the cosine of two samples' signals is known; none if they are fewer than three.

    Layers whose weights are all 0 are left out, such as the last layer of a branch that starts at 0, since they give
    the same output, their bias, for all samples.
    """
    frame = flow.frame[flow.frame["activation_correlation"].notna() & ~(flow.frame["weight_zero_fraction"] == 1)]
    return frame if len(frame) >= 3 else frame[:0]


def collapsed(flow: GradientFlow) -> Cause | None:
    known = cosines(flow)["activation_correlation"]
    if known.empty or not known.iloc[-2] >= ALIKE or known.iloc[0] >= ALIKE:
        return None
    return Cause("inputs collapse", f"at the last hidden layer two samples' signals have a cosine of "
                 f"{known.iloc[-2]:.3f}, {known.iloc[0]:.2f} at the first",
                 "Add skip connections (x + branch(x)), or use fewer layers: inputs that are alike cannot be told "
                 "apart.")


def signal(flow: GradientFlow) -> Cause | None:
    verdict = flow.verdict
    if verdict.kind in ("stable", "cannot tell", "cut off"):
        return None
    return Cause(f"{verdict.kind} gradients", verdict.sentence.removeprefix(f"{verdict.kind}: ").rstrip("."),
                 verdict.advice)
