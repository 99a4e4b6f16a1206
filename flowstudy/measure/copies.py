"""Measuring without touching: a float64 copy of the model, and the inputs checked at the public edge."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def float64_copy(call: str, model: nn.Module) -> nn.Module:
    """A float64 copy, on the model's device and in its mode, whose parameters ask for no gradient."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{call}: `model` must be an nn.Module, got {type(model).__name__}.")
    return copy.deepcopy(model).double().requires_grad_(False)


def check_input(call: str, model: nn.Module, x: Tensor) -> Tensor:
    """`x` in float64 (integers, such as token ids, stay), or the error that says what is wrong with it."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{call}: `x` must be a tensor of inputs, got {type(x).__name__}. Use torch.as_tensor.")
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"{call}: `x` must be a batch of at least one sample, got shape {tuple(x.shape)}. "
                         "Its first axis counts samples: for one sample pass x.unsqueeze(0).")
    device = next((p.device for p in model.parameters()), x.device)
    if x.device != device:
        raise ValueError(f"{call}: `x` must be on the model's device {device}, got {x.device}. "
                         f"Pass x.to({str(device)!r}).")
    if not x.is_floating_point():
        return x
    if not x.isfinite().all():
        raise ValueError(f"{call}: `x` must be finite, got {int((~x.isfinite()).sum())} NaN or infinite entries.")
    features = getattr(model, "in_features", None)
    if isinstance(features, int) and x.shape[-1] != features:
        raise ValueError(f"{call}: `x` must have {features} features in its last axis, got shape {tuple(x.shape)}. "
                         "Flatten images with x.flatten(1).")
    return x.double()


@contextmanager
def untouched_random_state(device: torch.device) -> Iterator[None]:
    """The global random state is the same after as before, whatever dropout draws inside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
