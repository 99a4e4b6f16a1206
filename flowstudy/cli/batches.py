"""What a model is shown: inputs and labels that are drawn, or a batch from the user's file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from flowstudy.measure.models.layers import input_features

from .outcomes import stop
from .targets import outputs_of

Input = Annotated[str | None, typer.Option("--input", help="shape of one sample, such as 784 or 3x32x32")]
Vocabulary = Annotated[int | None, typer.Option(help="the model takes token ids below this number", min=1)]
Seed = Annotated[int, typer.Option(help="of the weights that the builder draws, and of inputs and labels")]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets.

    Attributes:
        x, y: (sample, ...), on the model's device; y None where no labels can be drawn for the model's outputs.
        loss: "cross_entropy" for labels, "mse" for real targets.
        words: what they are.
        outputs: of the first samples, as the model returns them.
    """

    x: Tensor
    y: Tensor | None
    loss: str
    words: str
    outputs: object


def drawn_batch(call: str, model: nn.Module, shape: str | None, classes: int | None, samples: int,
                vocabulary: int | None, seed: int) -> Batch:
    """Standard normal inputs, or token ids, and random labels of the model's classes.

    Args:
        classes: None stands for the model's outputs where they are (sample, class).
    """
    x = draw_inputs(call, model, shape, samples, vocabulary, seed)
    outputs = outputs_of(call, model, x)
    drawn = "token ids drawn at random" if vocabulary is not None else "drawn inputs (standard normal)"
    shown = f"{samples} samples of {'x'.join(map(str, x.shape[1:]))}, {drawn}"
    if not isinstance(outputs, Tensor):
        return Batch(x, None, "cross_entropy", shown, outputs)
    if classes is None and outputs.ndim == 2 and outputs.shape[1] > 1:
        classes = outputs.shape[1]
    if classes is None:
        return Batch(x, None, "cross_entropy", f"{shown}, and a random linear read-out instead of a loss", outputs)
    y = torch.randint(classes, (samples, *outputs.shape[2:]), generator=generator(seed + 1)).to(x.device)
    return Batch(x, y, "cross_entropy", f"{shown}, and random labels of {classes} classes", outputs)


def draw_inputs(call: str, model: nn.Module, shape: str | None, samples: int, vocabulary: int | None,
                seed: int) -> Tensor:
    """(samples, *shape) on the model's device: standard normal, or token ids."""
    if shape is None:
        features = input_features(model)
        if features is None:
            stop(f"{call}: `--input` must be given: the input shape of {type(model).__name__} is not known. "
                 "Pass the shape of one sample, such as --input 3x32x32.")
        sizes = [features]
    elif all(size.isdecimal() and int(size) > 0 for size in shape.lower().split("x")):
        sizes = [int(size) for size in shape.lower().split("x")]
    else:
        stop(f"{call}: `--input` must be sizes joined by x, such as 784 or 3x32x32, got {shape!r}.")
    device, dtype = home_of(model)
    if vocabulary is not None:
        return torch.randint(vocabulary, (samples, *sizes), generator=generator(seed)).to(device)
    return torch.randn(samples, *sizes, generator=generator(seed)).to(device, dtype)


def saved_batch(call: str, model: nn.Module, path: Path, samples: int) -> Batch:
    """The file's x and y, on the model's device; real inputs in its dtype.

    Args:
        samples: the model is run on the first so many, to know its outputs.
    """
    x, y = read_pair(call, path)
    device, dtype = home_of(model)
    x = x.to(device, dtype) if x.is_floating_point() else x.to(device)
    y = y.to(device, dtype) if y.is_floating_point() else y.to(device, torch.long)
    outputs = outputs_of(call, model, x[:samples])
    if isinstance(outputs, Tensor):
        check_fit(call, y, outputs)
    real = y.is_floating_point()
    words = f"{len(x)} samples of {path}, and their {'targets (mean squared error)' if real else 'labels'}"
    return Batch(x, y, "mse" if real else "cross_entropy", words, outputs)


def read_pair(call: str, path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        stop(f"{call}: `--data` must name a file that exists, got {str(path)!r}.")
    save = "Save it by torch.save((x, y), path), x and y tensors."
    try:
        pair = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # bytes that are no such file are met with errors of a dozen kinds
        stop(f"{call}: `--data` must be a file of tensors that torch.save wrote, got {str(path)!r}, which "
             f"torch.load(weights_only=True) cannot read. {save}")
    if isinstance(pair, dict):
        pair = tuple(pair[key] for key in ("x", "y") if key in pair)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        stop(f"{call}: `--data` must hold a tuple (x, y) or a dict with 'x' and 'y', both tensors, got something else "
             f"in {str(path)!r}. {save}")
    x, y = pair
    if x.ndim < 2 or len(x) < 2 or x.numel() == 0 or y.ndim == 0 or len(x) != len(y):
        stop(f"{call}: `--data` must hold two samples or more, and a target for each, got x of shape "
             f"{tuple(x.shape)} and y of shape {tuple(y.shape)}. The first axis counts samples.")
    if x.is_complex() or y.is_complex() or not (x.isfinite().all() and y.isfinite().all()):
        stop(f"{call}: `--data` must hold finite real numbers, got complex, NaN or infinite ones in {str(path)!r}.")
    return x, y


def check_fit(call: str, y: Tensor, outputs: Tensor) -> None:
    """Targets have the outputs' shape, labels have it without the class axis, which is the second."""
    of_one = outputs.shape[1:] if y.is_floating_point() else outputs.shape[2:]
    if not y.is_floating_point() and outputs.ndim < 2:
        stop(f"{call}: `--data` must hold real targets, the model's outputs being {tuple(outputs.shape)} without "
             "classes, got whole numbers. Save y.float().")
    if y.shape[1:] != of_one:
        stop(f"{call}: `--data` must hold y of shape {(len(y), *of_one)} for outputs (sample, class, ...) of shape "
             f"{(len(y), *outputs.shape[1:])}, got {tuple(y.shape)} of {y.dtype}. Labels are whole numbers.")


def home_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return device, next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
