"""Names of arguments, and late imports.

Editors complete the names.  The late imports are of packages that import this one: they are made when needed.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names that editors complete.  Any other string may name an entry that the user has added; else the call refuses it.
NetName = Literal["plain", "highway", "residual"] | str
ActivationName = Literal["relu", "tanh", "sigmoid", "linear", "gelu", "hard_tanh", "erf"] | str
SchemeName = Literal["glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform",
                     "orthogonal", "random_walk", "random_walk_exact", "critical"] | str
DatasetName = Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100"] | str
MeasureName = Literal[
    "training_loss", "accuracy", "gradient_flow", "jacobian_spectrum", "spectrum_by_route", "gate_routing",
    "gate_routing_by_class", "lesions", "body_moments", "gradient_correlation", "gradient_around_circle"] | str
LossName = Literal["cross_entropy", "mse", "output"] | str
OptimizerName = Literal["sgd", "momentum", "adam", "adamw"] | str

LABELS: dict[str, str] = {}  # what plots call the kinds of net; `flowstudy.kinds` fills it


def meet_kinds() -> None:
    """Import `flowstudy.kinds`, which enters the kinds of net into the tables of the other packages."""
    importlib.import_module("flowstudy.kinds")


def find_plot(name: str) -> Callable[..., "Figure"]:
    """The function of this name in `flowstudy.plots`, from frame to Figure; the import takes about a second."""
    return getattr(importlib.import_module("flowstudy.plots"), name)
