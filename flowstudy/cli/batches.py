"""The batch that a model is measured on: inputs and targets drawn at random, or read from the user's files."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flowstudy.measure.gradients.losses import LOSSES, OWN, Objective
from flowstudy.measure.models.inputs import Inputs, check_batch
from flowstudy.measure.models.layers import input_features
from flowstudy.refusal import did_you_mean

from .options import Asked
from .outcomes import stop
from .targets import outputs_of

MOST_NUMBERS = 2**31  # the most numbers in drawn inputs: 8 GiB of float32


@dataclass(frozen=True)
class Batch:
    """Inputs and targets.

    Attributes:
        x, y: (sample, ...), on the model's device; y None where no labels can be drawn for the model's outputs.
        objective: "cross_entropy" for labels, "mse" for real targets, "output" where the model returns its loss.
        words: a description of the inputs and targets for the user.
        outputs: the part of the model's outputs for the first samples that the loss is computed from.
    """

    x: Inputs
    y: Tensor | None
    objective: Objective
    words: str
    outputs: Tensor

    @property
    def options(self) -> dict[str, object]:
        """The keyword arguments `loss` and `output` for `gradient_flow` and `trainability`."""
        return {"loss": self.objective.loss, "output": self.objective.entry}


def check_loss_option(call: str, loss: str | None) -> None:
    known = (*LOSSES, OWN)
    if loss is not None and loss not in known:
        stop(f"{call}: `--loss` must be one of {', '.join(known)}, got {loss!r}.{did_you_mean(loss, known)}")


# --- inputs ----------------------------------------------------------------------------------------------------------


def inputs_asked_for(call: str, model: nn.Module, asked: Asked) -> tuple[Inputs, str]:
    """The inputs of the user's file, or drawn ones; and a description of them."""
    if asked.file is None:
        x = draw_inputs(call, model, asked)
        shapes = " and ".join("x".join(map(str, t.shape[1:])) for t in x.tensors.values())
        drawn = "token ids drawn at random" if asked.vocabulary is not None else "drawn inputs (standard normal)"
        return x, f"{asked.samples} samples of {shapes}, {drawn}"
    for option, value in (("--input", asked.shapes), ("--vocabulary", asked.vocabulary)):
        if value:
            stop(f"{call}: `{option}` must be left out with --inputs, got {value!r}. The file holds the inputs.")
    x = on_model(call, "--inputs", model, read(call, "--inputs", asked.file, "Save them by torch.save(x, path), x a "
                                               "tensor, a tuple or a dict of tensors, such as dict(batch)."))
    return x, f"{len(x)} samples of {asked.file}"


def draw_inputs(call: str, model: nn.Module, asked: Asked) -> Inputs:
    """Draw a tensor (samples, *shape) for each shape, on the model's device: standard normal, or token ids."""
    device, dtype = home_of(model)
    draws = generator(asked.seed)

    def drawn(sizes: list[int]) -> Tensor:
        if asked.samples * math.prod(sizes) > MOST_NUMBERS:
            stop(f"{call}: `--input` and `--samples` must come to at most {MOST_NUMBERS:,} numbers, got "
                 f"{asked.samples} samples of {'x'.join(map(str, sizes))}.")
        if asked.vocabulary is not None:
            return torch.randint(asked.vocabulary, (asked.samples, *sizes), generator=draws).to(device)
        return torch.randn(asked.samples, *sizes, generator=draws).to(device, dtype)

    features = input_features(model)
    if asked.shapes:
        return Inputs(tuple(drawn(sizes_of(call, shape)) for shape in asked.shapes), {})
    if features is None:
        stop(f"{call}: `--input` must be given: the input shape of {type(model).__name__} is not known. "
             "Pass the shape of one sample, such as --input 3x32x32, or a file as --inputs.")
    return Inputs((drawn([features]),), {})


def sizes_of(call: str, shape: str) -> list[int]:
    sizes = shape.lower().split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        stop(f"{call}: `--input` must be sizes joined by x, such as 784 or 3x32x32, got {shape!r}.")
    return [int(size) for size in sizes]


def on_model(call: str, option: str, model: nn.Module, x: object) -> Inputs:
    """The tensors of a file moved to the model's device, those of real numbers cast to the model's dtype."""
    if not isinstance(x, Tensor | tuple | list | dict) or not Inputs.of(x).tensors:
        stop(f"{call}: `{option}` must hold tensors, alone, in a tuple or in a dict, got {type(x).__name__}.")
    device, dtype = home_of(model)
    return check_batch(call, model, Inputs.of(x).to(dtype).mapped(lambda _, t: t.to(device)))


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return device, next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- with targets ----------------------------------------------------------------------------------------------------


def drawn_batch(call: str, model: nn.Module, asked: Asked) -> Batch:
    """Inputs that are drawn or read, and random targets: labels of the model's classes if nothing else is asked for.

    Without --classes, the classes are the model's outputs where they are (sample, class).
    """
    x, shown = inputs_asked_for(call, model, asked)
    objective = Objective(call, asked.loss or "cross_entropy", asked.entry)
    outputs = objective.taken(outputs_of(call, model, x), None)
    if asked.loss == OWN:
        return Batch(x, None, objective, f"{shown}, and the loss that the model returns", outputs)
    draws = generator(asked.seed + 1)
    if asked.loss == "mse":
        y = torch.randn(outputs.shape, generator=draws).to(outputs)
        return Batch(x, y, objective, f"{shown}, and standard normal targets", outputs)
    classes = asked.classes
    if classes is None and outputs.ndim == 2 and outputs.shape[1] > 1:
        classes = outputs.shape[1]
    if classes is None:
        return Batch(x, None, objective, f"{shown}, and a random linear read-out instead of a loss", outputs)
    y = torch.randint(classes, (len(x), *positions_of(outputs, classes)), generator=draws).to(x.device)
    return Batch(x, y, objective, f"{shown}, and random labels of {classes} classes", outputs)


def positions_of(outputs: Tensor, classes: int) -> list[int]:
    """The shape of one sample's labels: classes are the second axis, or the last one where they fit there alone."""
    shape = list(outputs.shape[1:])
    return shape[:-1] if len(shape) == 2 and shape[1] == classes != shape[0] else shape[1:]


def saved_batch(call: str, model: nn.Module, path: Path, asked: Asked) -> Batch:
    """The file's x and y, on the model's device; the model is run on the first `asked.samples`, to know its outputs."""
    x, y = read_pair(call, path)
    x = on_model(call, "--data", model, x)
    if len(x) < 2 or y.ndim == 0 or len(x) != len(y):
        shapes = [tuple(t.shape) for t in x.tensors.values()]
        stop(f"{call}: `--data` must hold two samples or more, and a target for each, got x of shape "
             f"{', '.join(map(str, shapes))} and y of shape {tuple(y.shape)}. The first axis counts samples.")
    device, dtype = home_of(model)
    loss = asked.loss or ("mse" if y.is_floating_point() else "cross_entropy")
    y = y.to(device, dtype if y.is_floating_point() or loss == "mse" else torch.long)
    objective = Objective(call, loss, asked.entry)
    first = slice(min(asked.samples, len(x)))
    outputs = objective.taken(outputs_of(call, model, x[first]), y[first])
    objective.check(outputs, y[first])
    words = f"{len(x)} samples of {path}, and their {'targets (mean squared error)' if loss == 'mse' else 'labels'}"
    return Batch(x, y, objective, words, outputs)


def read_pair(call: str, path: Path) -> tuple[object, Tensor]:
    save = "Save it by torch.save((x, y), path), x and y tensors."
    pair = read(call, "--data", path, save)
    if isinstance(pair, dict):
        pair = tuple(pair[key] for key in ("x", "y") if key in pair)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], Tensor):
        stop(f"{call}: `--data` must hold a tuple (x, y) or a dict with 'x' and 'y', y a tensor, got something else "
             f"in {str(path)!r}. {save}")
    x, y = pair
    held = [t for t in (*Inputs.of(x).tensors.values(), y) if t.is_floating_point() or t.is_complex()]
    if any(t.is_complex() or t.isnan().any() or (t == math.inf).any() for t in held):
        stop(f"{call}: `--data` must hold finite real numbers, got complex, NaN or infinite ones in {str(path)!r}.")
    return x, y


def read(call: str, option: str, path: Path, save: str) -> object:
    if not path.is_file():
        stop(f"{call}: `{option}` must name a file that exists, got {str(path)!r}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises a dozen kinds of error for a file that it did not write
        return stop(f"{call}: `{option}` must be a file of tensors that torch.save wrote, got {str(path)!r}, which "
                    f"torch.load(weights_only=True) cannot read. {save}")
