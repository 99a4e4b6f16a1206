"""Singular values: of products of matrices, and of maps that are known by their action alone."""
