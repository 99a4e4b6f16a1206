"""Signals and gradients in wide nets: maps from layer to layer, their fixed points, and what finite width adds."""
