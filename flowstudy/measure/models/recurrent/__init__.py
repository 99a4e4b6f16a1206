"""Recurrent nets: torch's recurrent modules step by step, and how the error signal travels back over the steps."""
