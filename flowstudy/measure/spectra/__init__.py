"""Spectra of input-output Jacobians: the routes, what each costs, and what is refused."""
