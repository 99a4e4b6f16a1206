"""What is differentiated: a loss of the output and the targets, or a fixed random read-out where there are none."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.measure.models.copies import check_same_device, fast_copy
from flowstudy.refusal import RefusalError, RefusalTypeError

Loss = Callable[[Tensor, Tensor | None], Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}


def check_loss(call: str, loss: str | Loss, y: Tensor | None) -> Loss:
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise RefusalError(f"{call}: `loss` must be one of {', '.join(LOSSES)} or a function (output, y), got "
                           f"{loss!r}.")
    return random_readout if y is None else LOSSES[loss]


def measured_loss(call: str, loss: str | Loss, y: Tensor | None) -> Loss:
    """The loss in the dtype in which the model is measured: weights that it holds are those of a copy."""
    objective = check_loss(call, loss, y)
    return fast_copy(call, objective) if isinstance(objective, nn.Module) else objective


def random_readout(output: Tensor, _y: None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    flat = output.reshape(len(output), -1) if output.ndim else output.reshape(1, 1)
    weights = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64, device="cpu") / flat.shape[1] ** 0.5
    return (flat @ weights.to(flat)).real.mean() if flat.is_complex() else (flat @ weights.to(flat)).mean()


def check_targets(call: str, output: object, y: object, loss: str | Loss) -> None:
    """One tensor which the labels fit, or whatever a loss of the user's own takes."""
    if callable(loss):
        return
    if not isinstance(output, Tensor):
        raise RefusalError(f"{call}: `model` must return one tensor, got {type(output).__name__}. "
                           "Pass `loss=`, a function (output, y) -> scalar that takes what it returns.")
    if y is None:
        return
    if not isinstance(y, Tensor):
        raise RefusalTypeError(f"{call}: `y` must be a tensor of targets, got {type(y).__name__}. Use torch.as_tensor.")
    check_same_device(call, y, output.device)
    if loss != "cross_entropy":
        return
    if output.ndim < 2:
        raise RefusalError(f"{call}: `model` must have an output of shape (sample, class) for loss='cross_entropy', "
                           f"got {tuple(output.shape)}. Pass loss='mse', or a function (output, y) -> scalar.")
    if len(y) != len(output):
        raise RefusalError(f"{call}: `y` must have one label per sample, got {len(y)} labels for {len(output)} "
                           "samples.")
    check_label_range(call, y, output.shape[1])


def check_label_range(call: str, y: Tensor, classes: int) -> None:
    """Labels, not probabilities, are those of the model's outputs."""
    if not y.is_floating_point() and (y.min() < 0 or y.max() >= classes):
        raise RefusalError(f"{call}: `y` must hold labels from 0 to {classes - 1}, the model's outputs, "
                           f"got {int(y.min())} to {int(y.max())}.")
