"""Rules for arguments that are torch's: tensors, modules, devices."""

from typing import Any

import torch
from torch import Tensor, nn

from .arguments import in_short, instance_of, some_mapping
from .refusal import RefusalError

TENSOR = instance_of(Tensor, "a tensor")
MODULE = instance_of(nn.Module, "an nn.Module")


def some_tensors(call: str, name: str, value: Any) -> None:
    """Check that the value is a mapping of names to tensors."""
    some_mapping(call, name, value)
    for key, one in value.items():
        TENSOR(call, f"{name}[{key!r}]", one)


def check_torch_device(call: str, name: str, value: Any, known: str = "") -> torch.device:
    """Return the value as a device, if tensors can be made on it on this machine."""
    try:
        return torch.empty(0, device=torch.device(value)).device
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
        raise RefusalError(f"{call}: `{name}` must be {known}a device that torch sees, got {in_short(value)}: "
                           f"{str(error).splitlines()[0]}") from None


def check_device_or_auto(call: str, name: str, value: Any) -> object:
    is_auto = isinstance(value, str) and value == "auto"
    return value if is_auto else check_torch_device(call, name, value, "'auto' or ")
