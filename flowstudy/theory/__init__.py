"""Theory in numpy and scipy alone: closed forms and recursions for the quantities that `flowstudy.measure` measures."""

from .checks import Moments
from .mean_field.edge_of_chaos import critical_weight_var, edge_of_chaos
from .mean_field.highway import highway
from .mean_field.highway_limits import highway_limit, highway_log_volume, suggest_gate_bias
from .mean_field.maps import MeanField, correlation_map, length_map, mean_field
from .mean_field.mean_mode import mean_log_square, mean_mode
from .mean_field.plain import plain
from .mean_field.residual_net import residual_net
from .mean_field.shattering import shattered_correlation
from .random_matrix.carry_and_gain import (
    residual_edge,
    residual_largest_exponent,
    residual_lyapunov_exponents,
    residual_squared_gain,
)
from .random_matrix.fluctuations import (
    log_input_gradient_norm,
    log_jacobian_norm,
    log_weight_gradient_norm,
    squared_jacobian_norm,
)
from .random_matrix.free_product import product_log_singular_values
from .random_matrix.fuss_catalan import fuss_catalan_density, fuss_catalan_edge, fuss_catalan_moment
from .random_matrix.live_units import expected_rank
from .random_matrix.lyapunov import lyapunov_exponents, lyapunov_variance, sum_log_singular_values
from .random_matrix.random_walk import random_walk_drift, random_walk_gain
from .random_matrix.spectrum import mean_squared, second_moment, spectrum_edge, spectrum_variance

__all__ = [
    # signals and gradients: infinite width
    "MeanField", "correlation_map", "critical_weight_var", "edge_of_chaos", "length_map", "mean_field", "plain",
    "highway", "highway_limit", "highway_log_volume", "residual_net", "suggest_gate_bias", "shattered_correlation",
    # norms: mean and variance over nets, exact at any width
    "Moments", "log_input_gradient_norm", "log_jacobian_norm", "log_weight_gradient_norm", "squared_jacobian_norm",
    "random_walk_drift", "random_walk_gain",
    # what finite width adds where activations have a mean: leading order
    "mean_log_square", "mean_mode",
    # spectra: exact at any width
    "expected_rank", "lyapunov_exponents", "lyapunov_variance", "mean_squared", "second_moment",
    "sum_log_singular_values",
    # spectra: infinite width
    "fuss_catalan_density", "fuss_catalan_edge", "fuss_catalan_moment", "spectrum_edge", "spectrum_variance",
    "product_log_singular_values", "residual_edge", "residual_largest_exponent", "residual_lyapunov_exponents",
    "residual_squared_gain",
]
