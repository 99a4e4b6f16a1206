"""What single results draw of themselves: one model's gradient flow, its spectrum, its trainability."""

from .flow import gradient_flow
from .spectrum import spectrum
from .trainability import trainability

__all__ = ["gradient_flow", "spectrum", "trainability"]
