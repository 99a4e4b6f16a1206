"""What was read off nets at their start, held against what became of them: of the frames of `flowstudy.outcomes`."""

from .rates import highway_edge, rate_window
from .readings import area_table, predicted_against_trained, roc

__all__ = ["area_table", "highway_edge", "predicted_against_trained", "rate_window", "roc"]
