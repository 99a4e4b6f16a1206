"""What is predicted: numpy and scipy only, the same call shapes as what is measured."""

from .checks import Moments
from .fluctuations import (
    log_input_gradient_norm,
    log_jacobian_norm,
    log_weight_gradient_norm,
    squared_jacobian_norm,
)
from .fuss_catalan import fuss_catalan_density, fuss_catalan_edge, fuss_catalan_moment
from .live_units import expected_rank
from .lyapunov import lyapunov_exponents, sum_log_singular_values
from .random_walk import random_walk_gain
from .residual import (
    residual_edge,
    residual_largest_exponent,
    residual_lyapunov_exponents,
    residual_squared_gain,
)
from .spectrum import mean_squared, second_moment, spectrum_edge, spectrum_variance

__all__ = [
    # norms: mean and variance over nets, exact at any width
    "Moments", "log_input_gradient_norm", "log_jacobian_norm", "log_weight_gradient_norm", "squared_jacobian_norm",
    "random_walk_gain",
    # spectra: exact at any width
    "expected_rank", "lyapunov_exponents", "mean_squared", "second_moment", "sum_log_singular_values",
    # spectra: infinite width
    "fuss_catalan_density", "fuss_catalan_edge", "fuss_catalan_moment", "spectrum_edge", "spectrum_variance",
    "residual_edge", "residual_largest_exponent", "residual_lyapunov_exponents", "residual_squared_gain",
]
