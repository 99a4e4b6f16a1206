"""Plots of single results: one model's gradient flow, its spectrum, its gates, its trainability."""

from .flow import gradient_flow
from .gates import gate_activity
from .spectrum import spectrum
from .trainability import trainability

__all__ = ["gate_activity", "gradient_flow", "spectrum", "trainability"]
