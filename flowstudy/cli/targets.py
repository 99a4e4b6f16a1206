"""The model that a command's target names, built and run as its author would."""

import importlib
import importlib.util
import sys
from pathlib import Path

import torch
from torch import nn

from flowstudy.measure.models.copies import own_copy
from flowstudy.measure.models.inputs import Inputs

from .outcomes import stop, users_code


def load(call: str, target: str, seed: int) -> nn.Module:
    """The model that `target` names; a function or class is called without arguments, from a known random state."""
    where, _, name = target.partition(":")
    if not where or not name:
        stop(f"{call}: `target` must be package.module:name or file.py:name, got {target!r}.")
    module = import_file(call, Path(where)) if where.endswith(".py") else import_module(call, where)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(key for key in vars(found) if not key.startswith("_")) if found is module else ""
            stop(f"{call}: `target` must name something in {where}, got {name!r}. It has: {public or 'nothing such'}.")
        found = getattr(found, part)
    torch.manual_seed(seed)
    with users_code(call):
        model = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(model, nn.Module):
        stop(f"{call}: `target` must be an nn.Module or a function that returns one, got {type(model).__name__}.")
    return model


def import_module(call: str, name: str) -> object:
    sys.path.insert(0, str(Path.cwd()))  # a console script does not look into the folder that it is called in
    try:
        with users_code(call):
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                    raise  # the user's module was found and lacks something itself: its own traceback tells more
    finally:
        sys.path.pop(0)
    return stop(f"{call}: `target` must name a module that can be imported from {Path.cwd()}, got {name!r}. "
                "Give a file as path/to/file.py:name.")


def import_file(call: str, path: Path) -> object:
    if not path.is_file():
        stop(f"{call}: `target` must name a file that exists, got {str(path)!r}.")
    name = own_name(path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where pickle and dataclasses look for it
    sys.path.insert(0, str(path.resolve().parent))  # as where Python runs it: it may import what lies beside it
    try:
        with users_code(call):
            spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def own_name(stem: str) -> str:
    """The module name for a file: its stem, or stem_file where a module of that name exists, as for json.py."""
    taken = stem in sys.modules or stem in sys.stdlib_module_names or importlib.util.find_spec(stem) is not None
    return f"{stem}_file" if taken else stem


def outputs_of(call: str, model: nn.Module, x: Inputs) -> object:
    """The outputs of a copy of the model in its own dtype: an error here is the model's, not the measurement's."""
    copied = own_copy(call, model)
    with users_code(call), torch.random.fork_rng(), torch.no_grad():
        return x.call_model(copied)


def has_batch_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def on_device(call: str, model: nn.Module, device: str | None) -> nn.Module:
    """Move the model to the device of the option; the inputs are made or moved there later."""
    if device is None:
        return model
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        stop(f"{call}: `--device` must be a device that torch sees, got {device!r}: {str(error).splitlines()[0]}")
    return model.to(device)
