"""Advice on what usually helps, chosen by the kind of the verdict."""

import pandas as pd

ADVICE = {
    "vanishing": "Raise the gain (He for ReLU; orthogonal, or variance 1 / fan_in, for tanh), open a carry path "
                 "(residual, highway with a gate bias of about -ln(2 depth)), normalise, or use fewer layers.",
    "exploding": "Lower the gain (He for ReLU, variance 1 / fan_in for linear layers and tanh), scale residual "
                 "branches down, normalise, or use fewer layers.",
    "chaotic": "Lower the gain until the factor is 1 (tanh: weight variance 1 / fan_in without bias), or use fewer "
               "layers; normalisation does not help here.",
    "dead": "Check biases and learning rate (units that are never active pass nothing on), and the code for detach().",
    "cut off": "Look in the forward pass for detach(), no_grad(), .data, argmax or numpy between these layers and the "
               "loss; set requires_grad to False where they are not to learn.",
    "cannot tell": "",
    "stable": "",
}
OVER_TIME = {
    "vanishing": "Use nn.LSTM or nn.GRU with a bias of about ln(time steps) on the forget gate (nn.GRU: the update "
                 "gate), start the recurrent weights orthogonal, or shorten the way: attention, a loss at more steps.",
    "exploding": "Start the recurrent weights orthogonal with gain 1, use gates (nn.LSTM, nn.GRU), clip the norm of "
                 "the gradient, or backpropagate through fewer time steps.",
}
OF_OPERATIONS = {
    "vanishing": "Let each step keep more of the state (a factor nearer to 1), or shorten the way: a loss at more "
                 "steps, attention.",
    "exploding": "Bring the factor down to 1, or clip the norm of the gradient.",
}
SKIPS = "Add skip connections or use fewer layers: in a net that normalises, the gain of the weights changes nothing."


def advice_on(kind: str, path: pd.DataFrame, normalises: bool) -> str:
    """The advice as a sentence; empty for a net that needs none.

    Args:
        kind: of the verdict.
        path: the frame that the verdict was read from, see `GradientFlow.path`.
        normalises: whether the net has normalisation layers or the like, see `GradientFlow.normalises`.
    """
    own = (OF_OPERATIONS if is_bare(path) else OVER_TIME) if "step" in path else {}
    if kind in own:
        return own[kind]
    return SKIPS if normalises and kind in ("vanishing", "chaotic") and "step" not in path else ADVICE[kind]


def is_bare(path: pd.DataFrame) -> bool:
    """Whether the path goes through a loop of plain tensor operations, without layers."""
    return "log10_part_norm" in path
