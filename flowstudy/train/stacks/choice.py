"""The environment variable FLOWSTUDY_BACKEND: which of several ways to make training steps the user asks for."""

import os

from flowstudy.refusal import RefusalError

CHOICE = "FLOWSTUDY_BACKEND"
CHOICES = ("compiled", "torch", "triton")


def wanted() -> str:
    """One of CHOICES, or "" for the fastest that is there: "compiled" counts on a CPU, "triton" on a GPU.

    Raises:
        RefusalError: the variable names something else.
    """
    name = os.environ.get(CHOICE, "")
    if name not in ("", *CHOICES):
        raise RefusalError(f"train: `{CHOICE}` must be one of {', '.join(CHOICES)}, got {name!r}. Unset it: the "
                           "fastest that is there is taken.")
    return name
