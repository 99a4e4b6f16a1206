"""Will a net train?  The tangent kernel at its start, a short trial, and a verdict from both."""

from .result import Trainability
from .will_it_train import UntrainableError, assert_trainable, trainability

__all__ = ["Trainability", "UntrainableError", "assert_trainable", "trainability"]
