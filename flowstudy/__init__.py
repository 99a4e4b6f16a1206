"""Will this network train at this depth, and if not, why?  This module lists the public names by subpackage.

A name is imported when it is first used, since torch, scipy and pandas take seconds to import and a program may never
need them.  Editors and type checkers read `__init__.pyi`; a test compares the two lists.
"""

import importlib
import sys
from types import ModuleType

from .version import VERSION

__version__ = VERSION

_NAMES = {
    "nets": ["ACTIVATIONS", "HighwayNet", "PlainNet", "ResidualNet", "cifar_conv_net", "fitnet", "initialize",
             "initialize_as_authors", "mnist_conv_net"],
    "measure": ["GateActivity", "GradientFlow", "GradientMonitor", "JacobianSpectrum", "compare", "gate_activity",
                "gradient_flow", "jacobian_spectrum", "layer_jacobian_spectra", "lesion"],
    "trainability": ["Trainability", "UntrainableError", "assert_trainable", "trainability"],
    "train": ["RecordAt"],
    "sweep": ["Cell", "Store", "StoreError", "SweepError", "best", "grid", "random_search", "run", "top"],
    "data": ["Dataset", "load_dataset", "read_mnist"],
}
_ROOMS = ["integrations", "kinds", "outcomes", "paper", "plots", "predictions", "theory", *_NAMES]
_HOME = {name: room for room, names in _NAMES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})


class _Root(ModuleType):
    """`trainability` is a function and a subpackage: importing the subpackage must not replace the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root
