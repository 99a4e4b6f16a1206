"""One function per figure: tidy frame in, matplotlib Figure out.

Lines are medians over seeds, bands go from the 10th to the 90th percentile.
"""

from .gradients import gradient_by_layer, slope_by_depth, slope_gap_by_depth
from .heat_map import TRAINING_PANELS, training_heat_map
from .highway import highway_recursion, highway_spectrum
from .results import gate_activity, gradient_flow, spectrum, trainability
from .routing import gate_routing, gate_routing_by_class, lesions
from .save import each, save
from .search import best_settings, training_curve, which_runs_train
from .shattering import gradient_around_circle, gradient_correlation, gradient_correlation_by_depth
from .spectra import (
    condition_by_depth,
    lyapunov_exponents,
    spectrum_by_depth,
    spectrum_by_route,
    spectrum_statistic_by_depth,
)
from .through_training import spectra_through_training, training_curves
from .training import conv_training, figure_1, trainability_map

__all__ = [
    # many nets
    "figure_1", "best_settings", "which_runs_train", "training_curve", "trainability_map", "conv_training",
    "spectra_through_training", "training_curves",
    "gradient_by_layer", "slope_by_depth", "slope_gap_by_depth", "spectrum_by_depth",
    "spectrum_statistic_by_depth", "condition_by_depth", "spectrum_by_route", "lyapunov_exponents",
    "highway_recursion", "highway_spectrum", "gradient_correlation", "gradient_correlation_by_depth",
    "gradient_around_circle", "gate_routing", "gate_routing_by_class", "lesions",
    # one model, one run
    "gate_activity", "gradient_flow", "spectrum", "trainability", "training_heat_map", "TRAINING_PANELS",
    # keeping
    "each", "save",
]
