"""The paper's published numbers and its claims, each beside the measured value: rows of REPLICATION.md."""

from .best_settings import best_settings_claims
from .claims import class_claims, lesion_claims, routing_claims, training_claims
from .conv_nets import conv_table
from .published import figure_1_claims

__all__ = [
    "best_settings_claims", "class_claims", "conv_table", "figure_1_claims", "lesion_claims", "routing_claims",
    "training_claims",
]
