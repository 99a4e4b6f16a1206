"""What is observed: model and batch in, float64 numbers out."""

from .dense_jacobian import jacobian
from .gates import GateActivity, gate_activity, lesion
from .gradients import (
    Comparison,
    GradientFlow,
    UntrainableError,
    assert_trainable,
    compare,
    gradient_flow,
)
from .layer_spectra import layer_jacobian_spectra, stacked_jacobian_spectrum
from .lesions import lesion_losses
from .monitor import GradientMonitor
from .product_svd import product_svd
from .spectra import jacobian_spectrum
from .spectrum_result import JacobianSpectrum
from .stacked_flow import stacked_gradient_flow
from .verdict import Verdict

__all__ = ["Comparison", "GateActivity", "GradientFlow", "GradientMonitor", "JacobianSpectrum", "UntrainableError",
           "Verdict", "assert_trainable", "compare", "gate_activity", "gradient_flow", "jacobian",
           "jacobian_spectrum", "layer_jacobian_spectra", "lesion", "lesion_losses", "product_svd",
           "stacked_gradient_flow", "stacked_jacobian_spectrum"]
