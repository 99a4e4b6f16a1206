"""What is observed: model and batch in, float64 numbers out."""

from .gradients import GradientFlow, gradient_flow, stacked_gradient_flow
from .jacobian import JacobianSpectrum, jacobian, jacobian_spectrum

__all__ = ["GradientFlow", "JacobianSpectrum", "gradient_flow", "jacobian", "jacobian_spectrum",
           "stacked_gradient_flow"]
