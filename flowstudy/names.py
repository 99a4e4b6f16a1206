"""What rooms above tell those below by name: kinds of net, and plots.  They are imported when they are asked for."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS: dict[str, str] = {}  # what plots call the kinds of net; `flowstudy.kinds` fills it


def meet_kinds() -> None:
    """The kinds of net tell the rooms below of themselves when they are imported: now at the latest."""
    importlib.import_module("flowstudy.kinds")


def find_plot(name: str) -> Callable[..., "Figure"]:
    """Of `flowstudy.plots`: frame in, Figure out.  Importing it takes a second."""
    return getattr(importlib.import_module("flowstudy.plots"), name)
