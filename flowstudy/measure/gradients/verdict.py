"""From a gradient flow to one sentence: does the gradient get through, and if not, where and how fast is it lost?

The verdict compares values that carry everything on with the last one that the loss sees.  Its one threshold: a squared
error signal that has changed by less than e^6 (a norm by less than 20, 1.3 decades) counts as stable, which is six of
the gradient's own depth scales, 1 / |ln chi_1|.  The threshold is chosen, not derived.  It is inspired by the empirical
rule of Schoenholz et al. 2017, that nets train up to a depth of about 6 xi_c, but is not that rule: xi_c is the depth
scale of the correlation of two inputs.  The two scales agree in the ordered phase alone; in the chaotic phase they part
(tanh, weight variance 4, bias variance 0.05: 1 / ln chi_1 = 3.40, xi_c = 6.98).  And one draw of weights is not the
mean: ln ||error||^2 of a critical ReLU net of width n fluctuates by sqrt(5 depth / n) (Hanin & Nica 2020), which is 2.2
at depth 50 and width 50; nets near the threshold can fall on either side.

Half as much again, chosen too, is allowed where something makes up for the change.  A signal that shrinks towards the
input while the activations shrink towards the output leaves the weights' gradients, its products with the activations,
nearly even over the layers.  And weights in front of a normalisation grow under a gradient that is too large until
their steps are small in proportion (Arora, Li & Lyu 2019), so that plain nets with batch norm, whose squared signal
grows by up to pi / (pi - 1) per layer (Yang et al. 2019), train at 20 layers.

Of a recurrent net the places are the time steps, and the signal is that of the state.  Its weights are the same at all
of them, so that nothing makes up for a change there, and growth is called exploding whatever the activations do
(Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013).  A forget gate's bias of ln(time steps) makes the
gate's own time scale the length of the sequence (Tallec & Ollivier 2018).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from flowstudy.measure.models.recurrent.time_path import SHORTEST
from flowstudy.shown import as_html

from .advice import advice_on, is_bare
from .signal import backward_slope, fading, log_squares, slope_error

THRESHOLD = 6.0  # e-folds of the squared norm: six of the gradient's depth scales
ROOM = 1.5  # times the threshold, where something makes up for the change
FAR_FROM_ONE = 30.0  # inputs with a root mean square above this, or below its inverse, are mentioned in the verdict


@dataclass(frozen=True)
class Verdict:
    """One model's verdict on the signal; `str()` gives the sentence.

    What it cannot know: whether the net learns.  It has one batch, and neither an optimiser nor a learning rate nor the
    task beyond that batch.  A signal that gets through is needed for training, and is not enough; a signal that is
    uneven may still train at a rate that suits it.  Whether inputs are kept apart it does not see either.  The tangent
    kernel and a short trial know more: see `fs.trainability`.

    Attributes:
        kind: "stable"; "vanishing": the error signal loses more than six of its depth scales on the way to the input;
            "exploding": it gains as much, or the activations are not finite; "chaotic": it gains as much while the
            activations do not grow with it, so that nearby inputs are driven apart; "dead": it is exactly 0; "cut off":
            trainable layers get no gradient at all, because the loss does not depend on them; "cannot tell": there are
            not two places to compare, weights of exactly 0 hold the signal back until the first step, or the time
            steps of a recurrent module, or of a loop whose state no layer carries on, are not seen.
        layer: the layer from which on, towards the input, this holds; of "cut off" the first such layer; None where
            there is none.
        factor: by which the norm of the error signal changes per layer, or time step, on the way back, from the fitted
            slope.
        factor_error: its standard error, layers taken as independent factors.
        decades: log10 of the norm at the first place of the path over the norm at the last.
        sentence: all of it in words.
        advice: what usually helps.
    """

    kind: str
    layer: int | None
    factor: float
    factor_error: float
    decades: float
    sentence: str
    advice: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        return as_html(f"{self}\n{self.advice}", self.numbers)

    @property
    def numbers(self) -> pd.DataFrame:
        """One row: kind, layer, factor with its standard error, decades."""
        return pd.DataFrame([{"kind": self.kind, "layer": self.layer, "factor": self.factor,
                              "factor_error": self.factor_error, "decades": self.decades}])


def verdict_of(frame: pd.DataFrame, path: pd.DataFrame | None = None, *, normalises: bool = False,
               unread: Sequence[str] = (), notes: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a frame of `gradient_flow`.

    Args:
        path: of the same flow; None where every layer is on the main path.
        normalises: the net brings values to a size of its own, and `path` has signals that do not depend on it.
        unread: recurrent modules whose time steps are not seen.
        notes: what the sentence is to mention: see `remarks`.
    """
    path = frame if path is None else path
    over_time = "step" in path
    found = without_flow(frame, path) or (of_steps(frame, path) if over_time else of_change(path, normalises))
    if found.kind == "stable" and unread:
        found = nothing_but("cannot tell", None, f"cannot tell: {', '.join(map(repr, unread))} has a forward of its "
                                                 "own or is inside a layer, and its time steps are not seen.")
    if found.kind == "stable" and not over_time and (sentence := fading_between_uses(frame)):
        found = nothing_but("cannot tell", None, sentence)
    extra = "".join(f" {remark}" for remark in remarks(normalises, **(notes or {})))
    return replace(found, sentence=found.sentence + extra, advice=advice_on(found.kind, path, normalises))


def remarks(normalises: bool, input_mean_square: float = math.nan, running_statistics: int = 0,
            detached: Mapping[str, int] | None = None) -> list[str]:
    """Remarks beside the verdict: inputs far from unit scale, batch norm in evaluation mode, states that are detached.

    Args:
        running_statistics: batch norm layers in evaluation mode.
        detached: see `GradientFlow`.
    """
    found = []
    size = math.sqrt(input_mean_square) if input_mean_square >= 0 else math.nan
    if not normalises and (size < 1 / FAR_FROM_ONE or size > FAR_FROM_ONE):
        change = "smaller" if size < 1 else "larger"
        found.append(f"The inputs have a root mean square of {size:.2g}: the weights of the first layer get gradients "
                     f"that much {change} than from inputs of size 1; standardise the inputs.")
    if running_statistics:
        layers = f"{running_statistics} batch norm layer{'s' * (running_statistics > 1)}"
        found.append(f"Measured in evaluation mode, where {layers} divide by running statistics: another net than the "
                     "one that trains; measure it after model.train().")
    for name, calls in (detached or {}).items():
        found.append(f"{name!r} is given, without its gradient (detach() or the like), what came from its own earlier "
                     f"output in {calls} call{'s' * (calls > 1)}: no error signal passes there.")
    return found


# --- verdicts without a measured change of the signal ----------------------------------------------------------------


def without_flow(frame: pd.DataFrame, path: pd.DataFrame) -> Verdict | None:
    """Not finite, cut off, dead, or not to be told; None where a change of the signal can be read."""
    bad = frame["layer"][~np.isfinite(frame["activation_mean_square"])]
    if len(bad):
        return nothing_but("exploding", int(bad.iloc[0]), f"exploding: the activations of layer {bad.iloc[0]} are not "
                                                     "finite.")
    lost = cut_off(frame)
    if len(lost):
        places = [f"{module or 'the model'} (layer {layer})"
                  for module, layer in zip(lost["module"], lost["layer"], strict=True)]
        return nothing_but("cut off", int(lost["layer"].iloc[0]),
                           f"cut off: the loss gives no gradient to {first_few(places)}.")
    if frame["log10_error_signal_norm"].isna().all():
        return nothing_but("dead", int(frame["layer"].iloc[-1]), "dead: the loss depends on none of the layers.")
    logs = log_squares(path)
    seen = path[~np.isnan(logs)]
    silent = seen if len(seen) >= 2 else frame[frame["log10_error_signal_norm"].notna()]
    if silent["log10_error_signal_norm"].iloc[0] == -math.inf:
        return silence(frame, silent)
    if len(seen) < 2:
        return nothing_but("cannot tell", None, f"cannot tell: {too_few(frame, seen)}, and a change of the error "
                                                "signal needs two.")
    return None


def cut_off(frame: pd.DataFrame) -> pd.DataFrame:
    """Layers whose weights are meant to learn and get no gradient: the row of each one's first use."""
    lost = frame[frame["trainable"] & (frame["gradient"] == "none")] if "trainable" in frame else frame[:0]
    return lost.drop_duplicates("module")


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first of them in words, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def nothing_but(kind: str, layer: int | None, sentence: str) -> Verdict:
    return Verdict(kind, layer, math.nan, math.nan, math.nan, sentence)


def too_few(frame: pd.DataFrame, seen: pd.DataFrame) -> str:
    count = int(frame["log10_error_signal_norm"].notna().sum())
    if count < 2:
        return "the loss sees one layer only"
    places = "one value" if len(seen) else "no value"
    return f"{places} between the input and the loss carries everything on (skips or branches join the {count} layers)"


def silence(frame: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """An error signal of exactly 0 next to the input: dead, or held back by weights that are still 0."""
    still = (rows["log10_error_signal_norm"] == -math.inf).to_numpy()
    last = int(rows["layer"].iloc[reach(still)])
    after = rows["layer"][rows["layer"] > last]
    if "weight_zero_fraction" in frame:
        beyond = frame[(frame["layer"] > last) & (frame["layer"] <= (after.iloc[0] if len(after) else math.inf))]
        learns = (beyond["weight_zero_fraction"] == 1) & (beyond["gradient"] == "value")
        if learns.any():
            name, layer = beyond["module"][learns].iloc[0], beyond["layer"][learns].iloc[0]
            return nothing_but("cannot tell", last,
                               f"cannot tell: the weights of {name or 'the model'} (layer {layer}) are exactly 0, so "
                               "that nothing flows back through it before its first step; measure again after some "
                               "steps.")
    inactive = frame["layer"][frame["zero_fraction"] == 1]
    cause = f"; at layer {inactive.iloc[0]} all activations are 0" if len(inactive) else ""
    return nothing_but("dead", last, f"dead: the error signal is exactly 0 from layer {last} to the input{cause}.")


def fading_between_uses(frame: pd.DataFrame) -> str | None:
    """The layer whose signal fades between its uses, where a loop calls it on each step's input but its state is
    carried on by plain operations; None where there is no such layer."""
    if "main_path" not in frame:
        return None
    for name, uses in frame[~frame["main_path"]].groupby("module", sort=False):
        logs = log_squares(uses)
        logs = logs[np.isfinite(logs)]
        if len(logs) >= SHORTEST and logs[0] - logs[-1] < -THRESHOLD:
            return (f"cannot tell: from the last use of {name or 'the model'} to the first, {len(logs)} in all, the "
                    f"error signal falls by {(logs[-1] - logs[0]) / (2 * math.log(10)):.2g} decades, as along a loop "
                    "whose state no layer carries on (a product by element, a buffer), which is not seen.")
    return None


# --- how the signal changes ------------------------------------------------------------------------------------------


def of_change(path: pd.DataFrame, normalises: bool) -> Verdict:
    """The verdict on a path whose signal is known at two or more places and is not 0 at the first."""
    path = path[~np.isnan(log_squares(path))]
    layers, activations = path["layer"].to_numpy(), path["activation_mean_square"].to_numpy()
    change = log_squares(path) - log_squares(path)[-1]
    factor = math.exp(backward_slope(path) / 2)
    error, decades = factor * slope_error(path) / 2, change[0] / (2 * math.log(10))
    signal = "error signal, relative to the size of what it arrives at," if normalises else "error signal"
    pace = (f"by a factor of {with_error(factor, error)} per layer (1 at criticality), "
            f"{abs(decades):.2g} decades over {len(layers)} {places_in_words(layers)}")
    grown = math.log(activations[-1] / activations[0]) if activations[0] > 0 and activations[-1] > 0 else math.inf
    made_up = normalises if change[0] > 0 else not normalises and abs(change[0] - grown) <= THRESHOLD
    threshold = THRESHOLD * (ROOM if made_up else 1)
    share = math.exp(-threshold / 2)
    if abs(change[0]) <= threshold:
        return Verdict("stable", None, factor, error, decades,
                       f"stable: the {signal} reaches the input at {10**decades:.2g} times its last norm, "
                       f"changing {pace}{in_proportion(change[0], normalises)}.")
    beyond = change < -threshold if change[0] < 0 else change > threshold
    last = max(1, int(layers[reach(beyond)]))   # the input is no layer
    if change[0] < 0:
        return Verdict("vanishing", last, factor, error, decades,
                       f"vanishing: from layer {last} to the input the {signal} is below {100 * share:.2g}% of the "
                       f"last layer's; it shrinks {pace}.")
    kind = "chaotic" if normalises or grown < change[0] / 2 else "exploding"
    aside = ", while the activations do not grow with it" if kind == "chaotic" and not normalises else ""
    return Verdict(kind, last, factor, error, decades,
                   f"{kind}: from layer {last} to the input the {signal} is above {1 / share:.0f} times the last "
                   f"layer's; it grows {pace}{aside}.")


def of_steps(frame: pd.DataFrame, path: pd.DataFrame) -> Verdict:
    """The verdict on a path over the steps of a recurrence."""
    change, signal = log_squares(path) - log_squares(path)[-1], "error signal of the state"
    factor = math.exp(backward_slope(path) / 2)
    error, decades = factor * slope_error(path) / 2, change[0] / (2 * math.log(10))
    step = "step" if is_bare(path) else "time step"
    pace = (f"by a factor of {with_error(factor, error)} per {step} (1 at criticality), {abs(decades):.2g} decades "
            f"over {len(path)} {step}s of {cell_in_words(frame, path)}")
    share = math.exp(-THRESHOLD / 2)
    if abs(change[0]) <= THRESHOLD:
        fades = fading(path, THRESHOLD)
        aside = "" if math.isnan(fades) else ("; the loss sees many of them directly: what the last one alone sends "
                                              f"back fades by a factor of {fades:.3g} per time step")
        return Verdict("stable", None, factor, error, decades,
                       f"stable: the {signal} reaches the first {step} at {10**decades:.2g} times its last norm, "
                       f"changing {pace}{aside}.")
    last = reach(change < -THRESHOLD if change[0] < 0 else change > THRESHOLD)
    layer, where = int(path["layer"].iloc[last]) or None, f"from step {path['step'].iloc[last]} to the first"
    if change[0] < 0:
        return Verdict("vanishing", layer, factor, error, decades,
                       f"vanishing: {where} the {signal} is below {100 * share:.2g}% of the last {step}'s; it "
                       f"shrinks {pace}.")
    activations = path["activation_mean_square"].to_numpy()
    grown = math.log(activations[-1] / activations[0]) if activations[0] > 0 and activations[-1] > 0 else math.inf
    apart = ", while the activations do not grow with it: nearby states are driven apart"
    aside = apart if grown < change[0] / 2 else ""
    return Verdict("exploding", layer, factor, error, decades,
                   f"exploding: {where} the {signal} is above {1 / share:.0f} times the last {step}'s; it grows "
                   f"{pace}{aside}.")


def with_error(factor: float, error: float) -> str:
    """The factor with its error, in words; two places alone give a slope without an error."""
    return f"{factor:.3g}" + (f" ± {error:.1g}" if math.isfinite(error) else "")


def cell_in_words(frame: pd.DataFrame, path: pd.DataFrame) -> str:
    """The recurrence: a module's name, and which of its stacked layers and directions."""
    if path["layer"].iloc[0] == 0:
        return "a loop over the input"
    row = frame.iloc[int(path["layer"].iloc[0]) - 1]
    name = repr(row["module"]) if row["module"] else "the model itself"
    if path["layer"].nunique() == 1:
        return f"a loop over what {name} puts out"
    if "time" not in frame or pd.isna(row["time"]):
        return f"the loop over {name}"
    return f"{name} (stacked layer {row['stack_layer']}, {row['direction']})"


def places_in_words(layers: np.ndarray) -> str:
    every = (layers == np.arange(1, len(layers) + 1)).all()
    return "layers" if every else "places of the main path"


def in_proportion(change: float, normalises: bool) -> str:
    if abs(change) <= THRESHOLD:
        return ""
    if normalises:
        return ", which weights in front of a normalisation make up for"
    return ", while the activations shrink along with it and leave the weights' gradients even"


def reach(condition: np.ndarray) -> int:
    """Index of the last of the layers next to the input for which the condition holds without a break."""
    return len(condition) - 1 if condition.all() else int(np.argmin(condition)) - 1
