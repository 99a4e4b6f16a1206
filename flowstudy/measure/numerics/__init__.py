"""Singular values: of products of matrices, and of maps that are known by their action alone."""

import torch

EPS = torch.finfo(torch.float64).eps  # all of it computes in float64
