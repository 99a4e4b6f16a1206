"""Singular values: of products of matrices, and of maps that are known by their action alone."""

import torch

EPS = torch.finfo(torch.float64).eps  # of float64, in which everything here is computed
