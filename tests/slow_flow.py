"""Every statistic of gradient flow the slow way: one autograd call per layer, sample by sample, in float64."""

import math
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor


def statistics(loss: Tensor, layers: list[tuple[Tensor, list[Tensor]]]) -> pd.DataFrame:
    """A row per layer, given as its output and its weights; nan where the loss does not depend on them."""
    return pd.DataFrame([{**of_gradient(loss, weights), **of_error(loss, h), **of_activation(h.detach())}
                         for h, weights in layers])


def of_gradient(loss: Tensor, weights: list[Tensor]) -> dict[str, float]:
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) if weights else []
    entries = [value for g in found if g is not None for value in g.flatten().tolist()]
    if not entries:
        return dict.fromkeys(("log10_weight_gradient_norm", "gradient_zero_fraction", "gradient_subnormal_fraction"),
                             math.nan)
    return {
        "log10_weight_gradient_norm": log10(math.hypot(*entries)),
        "gradient_zero_fraction": sum(value == 0 for value in entries) / len(entries),
        "gradient_subnormal_fraction": sum(0 < abs(value) < 2.0**-126 for value in entries) / len(entries),
    }


def of_error(loss: Tensor, h: Tensor) -> dict[str, float]:
    (error,) = torch.autograd.grad(loss, h, retain_graph=True, allow_unused=True)
    if error is None:
        return {"log10_error_signal_norm": math.nan, "error_signal_spread": math.nan}
    logs = [math.log10(norm) for e in error if (norm := e.norm().item()) > 0]
    return {"log10_error_signal_norm": log10(error.norm().item()),
            "error_signal_spread": pd.Series(logs).std() if len(logs) > 1 else math.nan}


def of_activation(h: Tensor) -> dict[str, float]:
    pairs = [(a @ b / (a.norm() * b.norm())).item() for a, b in combinations(h.flatten(1), 2)]
    return {"activation_mean": h.mean().item(), "activation_mean_square": h.square().mean().item(),
            "zero_fraction": (h == 0).double().mean().item(),
            "activation_correlation": sum(pairs) / len(pairs) if pairs else math.nan}


def log10(value: float) -> float:
    return math.log10(value) if value else -math.inf
