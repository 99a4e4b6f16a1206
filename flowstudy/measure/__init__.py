"""What is observed: model and batch in, float64 numbers out."""

from .gates import GateActivity, gate_activity, lesion
from .gradients import (
    Comparison,
    GradientFlow,
    UntrainableError,
    assert_trainable,
    compare,
    gradient_flow,
    stacked_gradient_flow,
)
from .jacobian import JacobianSpectrum, jacobian, jacobian_spectrum, layer_jacobian_spectra, stacked_jacobian_spectrum
from .lesions import lesion_losses
from .monitor import GradientMonitor
from .product_svd import product_svd
from .verdict import Verdict

__all__ = ["Comparison", "GateActivity", "GradientFlow", "GradientMonitor", "JacobianSpectrum", "UntrainableError",
           "Verdict", "assert_trainable", "compare", "gate_activity", "gradient_flow", "jacobian",
           "jacobian_spectrum", "layer_jacobian_spectra", "lesion", "lesion_losses", "product_svd",
           "stacked_gradient_flow", "stacked_jacobian_spectrum"]
