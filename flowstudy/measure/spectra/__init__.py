"""Spectra of input-output Jacobians: three routes to the singular values, the choice between them, and checks."""
