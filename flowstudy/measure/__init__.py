"""Measurements: functions that take a model and a batch and return float64 numbers."""

from .gates.activity import GateActivity, gate_activity
from .gradients.flow import (
    Comparison,
    GradientFlow,
    compare,
    gradient_flow,
)
from .gradients.stacked import stacked_gradient_flow
from .gradients.verdict import Verdict
from .lesions import lesion, lesion_losses
from .models.dense_jacobian import jacobian
from .monitor.monitor import GradientMonitor
from .numerics.products.product_svd import product_svd
from .spectra.by_layer import layer_jacobian_spectra, stacked_jacobian_spectrum
from .spectra.one_model import jacobian_spectrum
from .spectra.result import JacobianSpectrum

__all__ = ["Comparison", "GateActivity", "GradientFlow", "GradientMonitor", "JacobianSpectrum",
           "Verdict", "compare", "gate_activity", "gradient_flow", "jacobian",
           "jacobian_spectrum", "layer_jacobian_spectra", "lesion", "lesion_losses", "product_svd",
           "stacked_gradient_flow", "stacked_jacobian_spectrum"]
