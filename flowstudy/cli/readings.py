"""The three readings of `flowstudy check`: is there a gradient, is the signal alive, will it train."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from flowstudy.measure import GradientFlow, gradient_flow
from flowstudy.measure.gradients.losses import OWN
from flowstudy.measure.gradients.verdict import first_few
from flowstudy.measure.models.copies import own_copy
from flowstudy.refusal import RefusalError
from flowstudy.trainability import Trainability, trainability
from flowstudy.trainability.causes import collapsed, cosines, softmax_twice

from .batches import Batch

NAMED = 4            # the most layers that a sentence names
NUDGE = 1e-2         # standard deviation of the random weights that replace a weight tensor of zeros
NOT_AGAINST = ("stable", "cannot tell", "cut off")  # kinds of verdict; "cut off" counts in the first reading instead


@dataclass(frozen=True)
class Reading:
    """The answer to one of the three questions.

    Attributes:
        question, answer: in a few words.
        reasons: paragraphs that explain the answer.
        against: whether it speaks against the model.
        missing: whether it was asked for and could not be taken.
    """

    question: str
    answer: str
    reasons: tuple[str, ...] = ()
    against: bool = False
    missing: bool = False


# --- 1: the gradient -------------------------------------------------------------------------------------------------


def gradient_reading(model: nn.Module, batch: Batch, flow: GradientFlow) -> Reading:
    question = "Does every trainable part get a gradient?"
    layers = gradients_of_layers(flow.frame)
    cut = [name for name, gradient in layers.items() if gradient == "none"]
    zero = [name for name, gradient in layers.items() if gradient == "zero"]
    silent = still_zero(model, batch, flow, zero)
    waiting = [name for name in zero if name not in silent]
    reasons = []
    if cut:
        reasons.append(f"cut off: the loss does not depend on the weights of {listed(cut)}. Look for detach(), "
                       "no_grad() or .data behind them; freeze them by requires_grad_(False) if that is meant.")
    if silent:
        reasons.append(f"The gradient is exactly 0 at {listed(silent)}: units behind them that are never active, or "
                       "saturated, pass nothing on.")
    if waiting:
        reasons.append(f"The gradient is 0 at {listed(waiting)} only until weights behind them, which begin at 0, have "
                       "made their first step.")
    if not layers:
        return Reading(question, "No: no layer that ran is trainable.", against=True)
    reached = len(layers) - len(cut) - len(silent)
    answer = f"{'No' if cut or silent else 'Yes'}: {reached} of the {len(layers)} trainable layers that ran do."
    return Reading(question, answer, tuple(reasons), against=bool(cut or silent or flow.verdict.kind == "cut off"))


def gradients_of_layers(frame: pd.DataFrame) -> dict[str, str]:
    """Gradient of every layer that ran and has trainable weights, by name: "value", "zero" or "none".

    It is "value" if the gradient is not 0 in any use of the layer.  A layer with a bias but no weights is not listed.
    """
    found: dict[str, str] = {}
    for name, gradient in frame.loc[frame["trainable"], ["module", "gradient"]].itertuples(index=False):
        found[name] = max(found.get(name, "none"), gradient, key=("none", "zero", "value").index)
    return found


def listed(names: list[str]) -> str:
    return first_few([repr(name) for name in names], NAMED)


def still_zero(model: nn.Module, batch: Batch, flow: GradientFlow, layers: list[str]) -> list[str]:
    """The layers whose gradient is 0 for another reason than that weights behind them start at 0.

    Read-outs and residual branches often start at 0; the layers before them get a gradient after the first step.  So a
    copy in which weight tensors of zeros are replaced by small random numbers is measured as well, and the layers whose
    gradient is still 0 there are returned.
    """
    nudged = own_copy("flowstudy check", model)
    zeros = [p for name, p in nudged.named_parameters()
             if p.requires_grad and not name.endswith("bias") and not p.detach().any()]
    if not layers or not zeros:
        return layers
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in zeros:
            p.copy_(NUDGE * torch.randn(p.shape, generator=random))
    again = gradient_flow(nudged, batch.x, batch.y, **batch.options)
    gradients = gradients_of_layers(again.frame)
    return [name for name in layers if gradients.get(name) != "value"]


# --- 2: the signal ---------------------------------------------------------------------------------------------------


def signal_reading(flow: GradientFlow) -> Reading:
    verdict = flow.verdict
    collapse, alike = collapsed(flow), cosines_in_words(flow)
    lost = verdict.kind not in NOT_AGAINST
    reasons = [str(verdict)] + [verdict.advice] * bool(verdict.advice) + [alike] * bool(alike)
    if collapse is not None:
        reasons.append(f"{collapse.name}: {collapse.advice}")
    unknown = verdict.kind in ("cannot tell", "cut off")
    answer = "No." if lost or collapse else "Not known." if unknown else "Yes."
    return Reading("Does the signal stay alive and keep inputs apart?", answer, tuple(reasons),
                   against=lost or collapse is not None)


def cosines_in_words(flow: GradientFlow) -> str:
    known = cosines(flow)
    if known.empty:
        return ""
    first, last = known.iloc[0], known.iloc[-2]
    return (f"Cosine of two inputs' signals: {first['activation_correlation']:.3f} at {first['module']!r}, "
            f"{last['activation_correlation']:.3f} at {last['module']!r}.")


# --- 3: training -----------------------------------------------------------------------------------------------------


def training_reading(model: nn.Module, batch: Batch, *, saved: bool, trial: int, optimizer: str, samples: int,
                     seconds: float | None, seed: int) -> tuple[Reading, Trainability | None]:
    """The reading of `trainability` on the user's batch, or, where a trial is asked for, on a drawn batch."""
    question = "Will it train?"
    if not saved and not trial:
        hint = ("Save a batch by torch.save((x, y), 'batch.pt') and pass --data batch.pt, with --trial 100 to train "
                "copies on it for 100 steps.")
        return Reading(question, "not tried on your data.", (hint, *softmax_named(batch))), None
    if batch.y is None:
        why = ("the model's own loss has no targets apart from it" if batch.objective.loss == OWN else
               "no labels can be drawn for these outputs")
        return Reading(question, f"could not be tried: {why}. Pass --data.", missing=True), None
    try:
        found = trainability(model, batch.x, batch.y, **batch.options, optimizer=optimizer, trial=trial,
                             samples=samples, seconds=seconds, seed=seed, progress=trial > 0)
    except RefusalError as error:
        return Reading(question, "could not be tried.", (str(error),), missing=True), None
    return reading_of(question, found, batch, saved, optimizer), found


def reading_of(question: str, found: Trainability, batch: Batch, saved: bool, optimizer: str) -> Reading:
    verdict, tried = found.verdict, found.tried
    cut_short = tried is not None and not tried.complete and verdict.kind != "trains"
    undecided = tried is not None and verdict.kind == "cannot tell"
    by = f"by {optimizer} on {'your data' if saved else 'drawn inputs and random labels'}"
    if cut_short:
        answer = f"could not be tried {by}: the trial ran out of time. Pass more --seconds, or fewer steps."
        reasons = [verdict.seen, verdict.predicted]
    else:
        said = str(verdict)
        answer, _, rest = said.partition(". ")
        answer, reasons = f"{answer.rstrip('.')}, {by}.", [rest]
    reasons.append(f"The loss at the start is {found.loss:.3g}; outputs that are the same for all inputs reach "
                   f"{found.constant_loss:.3g}.")
    if "softmax before" not in verdict.cause:
        reasons += softmax_named(batch)
    if tried is None:
        reasons.append("Not tried: --trial 100 trains copies for 100 steps, and decides.")
    return Reading(question, answer, tuple(reasons), against=verdict.kind == "does not train" and not cut_short,
                   missing=cut_short or undecided)


def softmax_named(batch: Batch) -> tuple[str, ...]:
    """A remark if the outputs are probabilities already; it does not count against the model."""
    cause = None if batch.y is None else softmax_twice(batch.outputs.double(), batch.objective.loss)
    return () if cause is None else (f"{cause.name}: {cause.seen}. {cause.advice}",)
