"""What is predicted: numpy and scipy only, the same call shapes as what is measured."""

from .random_matrix import lyapunov_exponents

__all__ = ["lyapunov_exponents"]
