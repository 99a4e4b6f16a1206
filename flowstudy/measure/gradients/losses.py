"""The scalar that is differentiated: a loss of output and targets, the model's own loss, or a random read-out."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowstudy.arguments import in_short
from flowstudy.measure.models.copies import fast_copy
from flowstudy.measure.models.inputs import check_same_device
from flowstudy.measure.models.outputs import check_entry, entries_of, entry_of
from flowstudy.refusal import RefusalError, RefusalTypeError

Loss = Callable[[Any, Any], Tensor]
LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}
OWN = "output"   # name of the loss that the model itself returns as part of its output
IGNORED = -100   # the label of samples that do not count in the cross-entropy


@dataclass(frozen=True)
class Objective:
    """The loss, and the entry of the model's output that it is computed from.

    Attributes:
        call: name of the public function, for error messages.
        loss: "cross_entropy", "mse", "output" (the model returns it), or a function (output, y) -> scalar.
        entry: key or place in the model's output.  None is the entry that `entry_of` finds; a function of the user's
            then takes the whole output.
    """

    call: str
    loss: str | Loss
    entry: str | int | None = None

    def __post_init__(self):
        if not callable(self.loss) and not (isinstance(self.loss, str) and self.loss in (*LOSSES, OWN)):
            raise RefusalError(f"{self.call}: `loss` must be one of {', '.join((*LOSSES, OWN))} or a function "
                               f"(output, y), got {in_short(self.loss)}.")
        check_entry(self.call, self.entry)

    @classmethod
    def measured(cls, call: str, loss: str | Loss, entry: str | int | None = None) -> "Objective":
        """The objective for a measurement: a loss module is replaced by a copy in the measurement's dtype."""
        return cls(call, fast_copy(call, loss) if isinstance(loss, nn.Module) else loss, entry)

    def to(self, real: torch.dtype) -> "Objective":
        """The same objective, a loss module replaced by a copy with weights of this dtype."""
        return replace(self, loss=copy.deepcopy(self.loss).to(real)) if isinstance(self.loss, nn.Module) else self

    def taken(self, output: object, y: object) -> Any:
        """The part of the output that the loss is computed from; for cross-entropy, classes are its second axis."""
        if self.loss == OWN:
            if y is not None:
                raise RefusalError(f"{self.call}: `y` must be left out with loss='output', got {type(y).__name__}. "
                                   "Give the model its labels in `x`, as it takes them.")
            return own_loss(self.call, output, self.entry)
        if callable(self.loss) and self.entry is None:
            return output
        found = entry_of(self.call, output, self.entry)
        labels = self.loss == "cross_entropy" and isinstance(y, Tensor)
        return classes_second(self.call, found, y) if labels else found

    def value(self, taken: Any, y: object) -> Tensor:
        """The loss, a tensor of shape (), of the part of the output that `taken` returned and the targets."""
        if callable(self.loss):
            value = self.loss(taken, y)
            if not isinstance(value, Tensor) or value.ndim:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise RefusalError(f"{self.call}: `loss` must return a tensor of shape (), got {got}. "
                                   "Average it over samples.")
            return value
        if self.loss == OWN:
            return taken
        if y is None:
            return random_readout(taken)
        labels = self.loss == "cross_entropy" and not y.is_floating_point()  # torch accepts labels as int64 only
        return LOSSES[self.loss](taken, y.long() if labels else y)

    def check(self, taken: Any, y: object) -> None:
        """Refuse targets that do not fit the result of `taken`; a function of the user's checks its own arguments."""
        if not callable(self.loss) and y is not None and not isinstance(y, Tensor):
            raise RefusalTypeError(f"{self.call}: `y` must be a tensor of targets, got {type(y).__name__}. "
                                   "Use torch.as_tensor.")
        if not callable(self.loss) and y is not None:
            check_same_device(self.call, y, taken.device)
        if self.loss == "mse" and y is not None:
            check_same_shape(self.call, taken, y)
        if self.loss == "cross_entropy" and y is not None:
            check_class_targets(self.call, taken, y)


def random_readout(output: Tensor) -> Tensor:
    """The mean over samples of a linear read-out, its weights N(0, 1 / outputs) and the same each time."""
    generator = torch.Generator().manual_seed(0)
    flat = output.reshape(len(output), -1) if output.ndim else output.reshape(1, 1)
    weights = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64, device="cpu") / flat.shape[1] ** 0.5
    return (flat @ weights.to(flat)).real.mean() if flat.is_complex() else (flat @ weights.to(flat)).mean()


def own_loss(call: str, output: object, entry: str | int | None) -> Tensor:
    """The scalar that a model returns as its loss: alone, by the name `loss`, or first of a tuple."""
    parts = dict(entries_of(output))
    found = output if isinstance(output, Tensor) else parts.get("loss" if entry is None else entry)
    if found is None and isinstance(output, tuple | list) and entry is None:
        found = parts.get(0)
    if not isinstance(found, Tensor) or found.ndim or not found.is_floating_point():
        got = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise RefusalError(f"{call}: `model` must return its loss for loss='output', a real number alone, by the name "
                           f"'loss' or first of a tuple, got {got}. Many models return one only if `x` has their "
                           "labels.")
    return found


# --- targets that fit ------------------------------------------------------------------------------------------------


def classes_second(call: str, output: Tensor, y: Tensor) -> Tensor:
    """The output with axes (sample, class, position), as F.cross_entropy wants it; the last two swapped if needed."""
    if output.ndim != 3 or y.is_floating_point():
        return output
    second, last = y.shape[1:] == output.shape[2:], y.shape[1:] == output.shape[1:2]
    if second and last:
        raise RefusalError(f"{call}: `y` must tell which axis of the output is the classes, got shapes "
                           f"{tuple(y.shape)} and {tuple(output.shape)}, which both its last axes fit. Pass `loss=`, a "
                           "function such as lambda output, y: F.cross_entropy(output.flatten(0, 1), y.flatten()) for "
                           "(sample, position, class), or F.cross_entropy itself for (sample, class, position).")
    return output.movedim(-1, 1) if last else output


def check_same_shape(call: str, output: Tensor, y: Tensor) -> None:
    if output.shape != y.shape:
        way = f" Pass y.reshape{tuple(output.shape)}." if output.numel() == y.numel() else ""
        raise RefusalError(f"{call}: `y` must have the output's shape {tuple(output.shape)} for loss='mse', got "
                           f"{tuple(y.shape)}.{way}")


def check_class_targets(call: str, output: Tensor, y: Tensor) -> None:
    """Refuse targets that are neither labels nor probabilities of the classes, the output's second axis."""
    if output.ndim < 2:
        raise RefusalError(f"{call}: `model` must have an output of shape (sample, class) for loss='cross_entropy', "
                           f"got {tuple(output.shape)}. Pass loss='mse', or a function (output, y) -> scalar.")
    if y.ndim == 0 or len(y) != len(output):
        raise RefusalError(f"{call}: `y` must have one label per sample, got {len(y) if y.ndim else 'one'} labels for "
                           f"{len(output)} samples.")
    fitting = output.shape if y.is_floating_point() else output.shape[:1] + output.shape[2:]
    if y.shape != fitting:
        what = "probabilities" if y.is_floating_point() else "labels"
        raise RefusalError(f"{call}: `y` must be {what} of shape {tuple(fitting)} for an output (sample, class, ...) "
                           f"of shape {tuple(output.shape)}, got {tuple(y.shape)} of {y.dtype}. Labels are integers.")
    check_label_range(call, y, output.shape[1])


def check_label_range(call: str, y: Tensor, classes: int) -> None:
    """Refuse labels outside of 0..classes - 1, but for those that are left out; probabilities are not checked."""
    if y.is_floating_point():
        return
    counted = y[y != IGNORED]
    if not counted.numel():
        raise RefusalError(f"{call}: `y` must have a label that counts, got {IGNORED} alone, which is left out.")
    if counted.min() < 0 or counted.max() >= classes:
        raise RefusalError(f"{call}: `y` must hold labels from 0 to {classes - 1}, the model's outputs, "
                           f"got {int(counted.min())} to {int(counted.max())}. {IGNORED} is left out.")
