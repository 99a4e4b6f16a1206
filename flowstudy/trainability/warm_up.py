"""The test whether a net that learns at no constant rate learns at one that grows over the first steps.

Where every sum of a branch and its input is normalised on the main path (post-norm transformers), the gradients near
the output are large at the start whatever the depth, and the steps that they allow are too small for the rest.

Source: Xiong et al. 2020 (On layer normalization in the transformer architecture).
"""

import pandas as pd

from flowstudy.measure import GradientFlow
from flowstudy.measure.models.layers import is_norm

from .causes import Cause
from .trials.trial import Trial


def normalises_sums(flow: GradientFlow) -> bool:
    """Two or more normalisations on the main path, which sums of branches lead to."""
    frame: pd.DataFrame = flow.frame
    norms = frame["type"].map(is_norm) & frame["main_path"]
    return int(norms.sum()) >= 2 and not frame["main_path"].all()


def no_warm_up(warmed: Trial, steps: int) -> Cause:
    """The cause of a trial that learnt only at a rate that grew over `steps` steps, not at a constant one."""
    best = warmed.best
    return Cause("no warm-up", f"a trial whose learning rate grows over its first {steps} steps reaches a loss of "
                 f"{best.loss:.3g} at {best.learning_rate:g}, one at constant rates does not",
                 f"Let the learning rate grow linearly over the first steps ({steps} did in the trial), or normalise "
                 "each branch's input instead of the sums (pre-norm).", sure=True)
