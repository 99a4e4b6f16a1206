"""Will it train: the tangent kernel, a short trial, and a reading of both."""

from .result import Trainability
from .will_it_train import UntrainableError, assert_trainable, trainability

__all__ = ["Trainability", "UntrainableError", "assert_trainable", "trainability"]
