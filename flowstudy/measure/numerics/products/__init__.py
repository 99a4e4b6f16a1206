"""Singular values of long products of matrices, every one of them."""
