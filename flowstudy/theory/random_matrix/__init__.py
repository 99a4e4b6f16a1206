"""Singular values of products of random matrices: exact at finite width, and free probability in its limit."""
