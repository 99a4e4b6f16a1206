"""The verdict from the kernel's prediction and the trial: trains, slow, does not train, or cannot tell.

Both were calibrated on 201 nets that were trained for 1,000 steps of batch 64 at eight rates: plain, highway, residual
and normalised nets, convolutions and transformers, on ten classes (`benchmarks/trainability.py`).  Each has a score,
and the larger it is, the less likely the net trains:

    kernel  remaining(10^4) of the kernel in Adam's metric + 0.05 log10(loss at the start / loss of constant outputs),
    trial   ln(lowest loss of the trial / loss of constant outputs) + remaining(10^4).

The thresholds were set with 48 samples, 10 classes and trials of 100 steps.  For other numbers the scores mean the same
but the thresholds may not fit, and those of the kernel lie farther apart.  A kernel's score between its two gives the
verdict "cannot tell"; the trial has one threshold, between nets that train and nets that learn slowly.
"""

import math
from dataclasses import dataclass

from flowstudy.shown import as_html

from .causes import Cause
from .kernel.decay import HORIZON

# Below the first a net trains, above the second it does not; between them the kernel alone cannot tell.  In Adam's
# metric, and in the plain one where Adam's is not known.
KERNEL = {"adam": (0.38, 0.56), "own": (0.50, 0.67)}
TRIAL_TRAINS = 0.30   # nets with a trial's score below this trained in 1,000 steps
OTHERS = 2.0          # factor by which the thresholds are farther apart where they were not calibrated
NOTHING = 0.97        # a trial whose losses stay above this share of the loss of constant outputs has learnt nothing
LOSS_WEIGHT = 0.05    # weight in the score of a decade of the loss at the start
HALF = 0.5            # share of the residual left after the number of steps that a verdict names
SOON = 1_000          # a net is slow if it takes more steps than this


@dataclass(frozen=True)
class TrainabilityVerdict:
    """One model's reading; `str()` gives it in words.

    Attributes:
        kind: "trains"; "slow": it learns, in more steps than usual; "does not train": at no rate of the usual grid;
            "cannot tell".
        predicted: by the kernel, in words.
        seen: in the trial, in words; empty without one.
        cause: what stands against training, in words; empty where nothing was found.
        advice: what helps against it.
        steps: about how many steps half of the task takes at the best rate, by the kernel.
        note: that another net was read than the one that trains; else empty.
    """

    kind: str
    predicted: str
    seen: str
    cause: str
    advice: str
    steps: float
    note: str = ""

    def __str__(self) -> str:
        word = f"slow: about {rounded(self.steps)} steps" if self.kind == "slow" else self.kind
        word += " as a whole" if self.cause.startswith("Cause: cut off") else ""
        parts = [f"{word}.", self.seen, self.predicted, self.cause, self.advice, self.note]
        return " ".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        return as_html("\n".join([f"{self.kind}.", self.seen, self.predicted, self.cause, self.advice, self.note]))


def read_off(*, remaining: float, uncertain: float, steps: float, metric: str, loss_at_start: float, constant: float,
         seen: str, lowest: float | None, calibrated: bool, causes: list[Cause],
         note: str = "") -> TrainabilityVerdict:
    """The verdict.

    Args:
        remaining: share of the residual left after 10^4 steps; `uncertain`, by how much it may be too small.
        steps: to half of the task, by the kernel.
        metric: of `remaining`: "adam" or "own".
        loss_at_start, constant: at the start, and the least that constant outputs have.
        lowest: the trial's lowest loss, inf where every rate diverged; None without a trial.
        calibrated: the thresholds are of this number of samples and classes.
        note: what else is to be said of the reading.
    """
    kind = (kind_by_kernel(remaining, uncertain, metric, loss_at_start, constant, calibrated) if lowest is None
            else kind_by_trial(remaining, lowest, constant))
    if kind != "does not train":   # what is lost in 16 bits counts only where the rest would learn
        causes = sorted(causes, key=lambda cause: not cause.decides)
    if causes and (causes[0].decides or (kind == "cannot tell" and causes[0].sure)):
        kind = "does not train"
    if kind == "trains" and steps > SOON and lowest is None:
        kind = "slow"
    cause, advice = "", ""
    if kind != "trains" and causes:
        cause, advice = f"Cause: {causes[0].name}: {causes[0].seen}.", causes[0].advice
    return TrainabilityVerdict(kind, predicted_in_words(remaining, uncertain, steps), seen, cause, advice, steps, note)


def kind_by_kernel(remaining: float, uncertain: float, metric: str, loss_at_start: float, constant: float,
                   calibrated: bool) -> str:
    if not math.isfinite(loss_at_start):
        return "does not train"
    far_off = max(0.0, math.log10(loss_at_start / constant)) if constant > 0 else 0.0
    low = remaining + LOSS_WEIGHT * far_off
    high = low + uncertain
    trains, fails = KERNEL[metric]
    middle, half = (trains + fails) / 2, (fails - trains) / 2
    half *= 1.0 if calibrated else OTHERS
    if high < middle - half:
        return "trains"
    return "does not train" if low > middle + half else "cannot tell"


def kind_by_trial(remaining: float, lowest: float, constant: float) -> str:
    """The verdict's kind from the score of a trial, in which the kernel's prediction is a part."""
    if not math.isfinite(lowest):
        return "does not train"
    if not constant > 0:   # a loss of the user's own, below 0 or not differentiable: what is little is not known
        return "cannot tell"
    score = math.log(max(lowest, 1e-300) / constant) + remaining
    if lowest > NOTHING * constant:   # nothing learnt: of nets that the kernel expects to learn, half do so later
        return "cannot tell" if score < TRIAL_TRAINS else "does not train"
    return "trains" if score < TRIAL_TRAINS else "slow"


def predicted_in_words(remaining: float, uncertain: float, steps: float) -> str:
    left = f"{remaining:.0%}" + (f" to {min(1.0, remaining + uncertain):.0%}" if uncertain > 0.01 else "")
    return (f"The tangent kernel predicts that {left} of the task is left after {HORIZON:,} steps at the best stable "
            "rate" + (f", and half of it after {rounded(steps)}." if math.isfinite(steps) else "."))


def rounded(steps: float) -> str:
    if not math.isfinite(steps):
        return "more than a million"
    return f"{float(f'{max(steps, 1.0):.1g}'):,.0f}"
