"""Will this network train at this depth, and if not, why?  The public names, grouped by verb."""

from .data import Dataset, load_dataset, read_mnist
from .measure import (
    GateActivity,
    GradientFlow,
    GradientMonitor,
    JacobianSpectrum,
    compare,
    drawn,
    gate_activity,
    gradient_flow,
    jacobian_spectrum,
    layer_jacobian_spectra,
    lesion,
)
from .nets import (
    ACTIVATIONS,
    HighwayNet,
    PlainNet,
    ResidualNet,
    cifar_conv_net,
    fitnet,
    initialize,
    initialize_as_authors,
    mnist_conv_net,
)
from .sweep import Cell, Store, StoreError, SweepError, best, grid, random_search, run, top
from .train import RecordAt
from .trainability import Trainability, UntrainableError, assert_trainable, trainability
from .version import VERSION


def _plot(name: str) -> object:
    """The plots are imported when the first picture is asked for: they take a second."""
    from . import plots

    return getattr(plots, name)


drawn.find_plot = _plot
__version__ = VERSION

__all__ = [
    # build
    "ACTIVATIONS", "HighwayNet", "PlainNet", "ResidualNet", "cifar_conv_net", "fitnet", "initialize",
    "initialize_as_authors", "mnist_conv_net",
    # measure
    "GateActivity", "GradientFlow", "GradientMonitor", "JacobianSpectrum", "compare", "gate_activity", "gradient_flow",
    "jacobian_spectrum", "layer_jacobian_spectra", "lesion",
    # will it train
    "Trainability", "UntrainableError", "assert_trainable", "trainability",
    # plan, run, keep
    "Cell", "RecordAt", "Store", "StoreError", "SweepError", "best", "grid", "random_search", "run", "top",
    # data
    "Dataset", "load_dataset", "read_mnist",
]
