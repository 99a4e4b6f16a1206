"""What editors and type checkers read of `__init__.py`, which imports each of these names when it is first used."""

from . import data as data
from . import integrations as integrations
from . import kinds as kinds
from . import measure as measure
from . import nets as nets
from . import outcomes as outcomes
from . import paper as paper
from . import plots as plots
from . import predictions as predictions
from . import sweep as sweep
from . import theory as theory
from . import train as train
from .data import Dataset, load_dataset, read_mnist
from .measure import (
    GateActivity,
    GradientFlow,
    GradientMonitor,
    JacobianSpectrum,
    compare,
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

__version__: str

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
