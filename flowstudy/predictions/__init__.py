"""Functions that add theory to measured frames as columns `predicted` and `z`, a file for each kind of measurement."""

from .body import with_predicted_moments
from .by_net import backward_slopes
from .gradients import with_predicted_norms, with_predicted_slopes
from .layers import layer_gains, layer_theory, weight_var
from .shattering import with_predicted_correlations
from .spectra import with_predicted_spectra, with_predicted_statistics
from .through_training import through_training

__all__ = [
    "backward_slopes", "layer_gains", "layer_theory", "through_training", "weight_var",
    "with_predicted_correlations", "with_predicted_moments", "with_predicted_norms", "with_predicted_slopes",
    "with_predicted_spectra", "with_predicted_statistics",
]
