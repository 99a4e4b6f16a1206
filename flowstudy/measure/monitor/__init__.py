"""Gradients inside the user's own training loop."""
