"""The optimiser of the paper's convolutional nets: Caffe's Nesterov SGD, with its multipliers for biases and read-out.

Caffe (nesterov_solver.cpp, sgd_solver.cpp) keeps a velocity v in units of weights.  With g the gradient plus decay w:

    v' = m v + lr g,    w -= (1 + m) v' - m v  =  lr g + m v'

PyTorch keeps b in units of gradients: b' = m b + g, w -= lr (g + m b').  At a constant rate v = lr b and the two are
the same.  When the rate changes, Caffe's v stays while PyTorch's lr b is rescaled with it: after a drop to lr / 10 the
next update of PyTorch lacks m^2 (lr_old - lr_new) b, and with it the 1 / (1 - m) updates or so that the old velocity
takes to fade.  So `set_learning_rate` divides b by the same factor, and PyTorch's optimiser then makes Caffe's steps.
"""

import torch
from torch import nn

from flowstudy.refusal import RefusalError

BIAS_RATE = 2.0       # times the learning rate; biases have no weight decay
READOUT_DECAY = 10.0  # times the weight decay


def nesterov_sgd(model: nn.Module, learning_rate: float, momentum: float = 0.9, weight_decay: float = 0.001, *,
                 readout: nn.Module | None = None) -> torch.optim.SGD:
    """The authors' optimiser for any model; change its rate by `set_learning_rate` alone.

    Args:
        model: any module. What is named `bias` learns at twice the rate and does not decay.
        learning_rate: of weights, in PyTorch's convention: momentum multiplies the length of a step by 1 / (1 - m).
        momentum: m, in (0, 1).
        weight_decay: factor on w in its gradient; ten times that for the read-out's.
        readout: the linear layer before the loss; None is `model.readout`.

    Source: solver and network files of the authors' highway-networks repository (solver_type NESTEROV, lr_mult 2 and
        decay_mult 0 for biases, decay_mult 10 for the read-out's weight).
    """
    if not (learning_rate > 0 and 0 < momentum < 1 and weight_decay >= 0):
        raise RefusalError("nesterov_sgd: `learning_rate` must be positive, `momentum` in (0, 1), `weight_decay` not "
                           f"negative, got {learning_rate}, {momentum}, {weight_decay}.")
    last = getattr(model, "readout", None) if readout is None else readout
    if not isinstance(last, nn.Module):
        raise RefusalError(f"nesterov_sgd: `model` must have a module `readout`, got {type(model).__name__} without. "
                           "Pass readout=, the linear layer before the loss.")
    of_readout = {id(p) for p in last.parameters()}
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "readout": [], "biases": []}
    for name, p in model.named_parameters():
        is_bias = name.rpartition(".")[2] == "bias"
        groups["biases" if is_bias else "readout" if id(p) in of_readout else "weights"].append(p)
    multipliers = {"weights": (1.0, 1.0), "readout": (1.0, READOUT_DECAY), "biases": (BIAS_RATE, 0.0)}
    return torch.optim.SGD([{
        "params": parameters,
        "rate_multiplier": multipliers[name][0],
        "lr": multipliers[name][0] * learning_rate,
        "weight_decay": multipliers[name][1] * weight_decay,
    } for name, parameters in groups.items() if parameters], lr=learning_rate, momentum=momentum, nesterov=True)


@torch.no_grad()
def set_learning_rate(optimizer: torch.optim.SGD, learning_rate: float) -> None:
    """Change the rate between two updates as Caffe does: the velocity, in units of weights, stays as it is."""
    for group in optimizer.param_groups:
        new = group["rate_multiplier"] * learning_rate
        if new != group["lr"]:
            buffers = [state["momentum_buffer"] for state in map(optimizer.state.get, group["params"]) if state]
            if buffers:
                torch._foreach_mul_(buffers, group["lr"] / new)
            group["lr"] = new
