"""The device that a model is measured on."""

from typing import Annotated

import torch
import typer
from torch import nn

from .outcomes import stop

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; without, where the model's builder put it")]


def on_device(call: str, model: nn.Module, device: str | None) -> nn.Module:
    """Move the model to the device of the option; the inputs are made or moved there later."""
    if device is None:
        return model
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        stop(f"{call}: `--device` must be a device that torch sees, got {device!r}: {str(error).splitlines()[0]}")
    return model.to(device)
