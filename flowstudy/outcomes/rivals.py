"""What others read off a net before it trains: synflow, the Jacobian's correlations, how alike inputs have become."""

import copy

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowstudy.measure.models.forward import mean_cosine

from .small_nets import BatchStatistics

JITTER = 1e-5  # k of the authors
NORMS = nn.LayerNorm, BatchStatistics


def synflow(model: nn.Module, shape: tuple[int, ...]) -> float:
    """ln sum |w dR/dw| over the weights of linear and convolutional layers; the larger, the better.

    R is the sum of the outputs for one input of ones, all parameters replaced by their absolute values and norms left
    out, in float64: -inf where nothing reaches the outputs.

    Args:
        shape: of one input.

    Source: Tanaka, Kunin, Yamins & Ganguli 2020; as a score of nets Abdelfattah et al. 2021.
    """
    net = without_norms(copy.deepcopy(model)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.abs_()
    weights = [layer.weight for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    gradients = torch.autograd.grad(net(torch.ones(1, *shape, dtype=torch.float64)).sum(), weights,
                                    materialize_grads=True)
    total = float(sum((w.detach() * g).abs().sum() for w, g in zip(weights, gradients, strict=True)))
    return float(np.log(total)) if total > 0 else -np.inf


def without_norms(net: nn.Module) -> nn.Module:
    for name, child in net.named_children():
        setattr(net, name, nn.Identity() if isinstance(child, NORMS) else without_norms(child))
    return net


def jacobian_covariance(model: nn.Module, x: Float[Tensor, "sample *pixel"]) -> float:
    """-sum_i (ln(v_i + k) + 1 / (v_i + k)); the larger, the better.

    v_i are the eigenvalues of the correlations, over input entries, of d(sum of outputs) / d input between samples, in
    float64.  -inf where a sample's derivative is the same for all entries, 0 say: it has no correlation.

    Source: Mellor et al. 2020, first version; "jacob_cov" of Abdelfattah et al. 2021.
    """
    net, x = copy.deepcopy(model).double(), x.double().requires_grad_()
    rows = torch.autograd.grad(net(x).sum(), x)[0].flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not rows.isfinite().all() or not (norms > 0).all():
        return -np.inf
    unit = rows / norms
    v = torch.linalg.eigvalsh(unit @ unit.mT)
    return -float((torch.log(v + JITTER) + 1 / (v + JITTER)).sum())


def last_layer_cosine(model: nn.Module, x: Float[Tensor, "sample *pixel"]) -> float:
    """Between what two samples are to the read-out, mean over all pairs, in float64; 1 where one is 0 or infinite.

    Args:
        model: has a layer named `readout`.
    """
    net, seen = copy.deepcopy(model).double(), []
    readout = next(module for name, module in net.named_modules() if name.rpartition(".")[2] == "readout")
    readout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(x.double())
    return float(mean_cosine(seen[0], 0, len(x)).nan_to_num(1.0))
