"""Steps and losses of a stack by Triton's four launches beside torch's calls in a CUDA graph, and their settings."""

import contextlib
import itertools
from collections.abc import Iterator
from functools import partial

import torch

from flowstudy.train.batches import padded_size
from flowstudy.train.stacks import four_launches
from flowstudy.train.stacks.four_launches.there import why_not

from .. import training
from ..timing import seconds_of

BACKENDS = ("triton", "cuda graph")
SETTINGS = {50: [(4, 3, 32), (4, 3, 16), (4, 2, 16), (4, 1, 16), (8, 3, 32), (2, 3, 16), (4, 2, 32)],
            71: [(8, 1, 32), (8, 1, 16), (8, 2, 16), (16, 1, 32), (16, 1, 16)]}  # warps, stages, samples of a program


def compared(net: str, depth: int, width: int, nets: int, batch: int, device: torch.device, make: object,
             rounds: int) -> Iterator[dict]:
    """A row for each backend: ms a step, and ms for the loss over 2,000 samples."""
    for backend in BACKENDS:
        if backend == "triton" and (reason := why_not(device)):
            yield {"net": net, "backend": backend, "note": reason}
            continue
        x = torch.randn(training.SAMPLES, training.FEATURES, device=device)
        y = torch.randint(training.CLASSES, (training.SAMPLES,), device=device)
        group, go, count = training.group_of(nets, depth, x, y, batch, make, backend)
        seconds = seconds_of({"step": go, "loss": group.loss}, device, rounds)
        yield {"net": net, "depth": depth, "width": width, "nets": nets, "batch": batch, "backend": backend,
               "ms a step": 1e3 * seconds["step"] / count, "ms for the loss": 1e3 * seconds["loss"]}


def by_setting(net: str, depth: int, width: int, nets: int, batch: int, device: torch.device, make: object,
               rounds: int) -> Iterator[dict]:
    """ms a step by warps, stages and samples of the passes' programs."""
    for setting in SETTINGS[width]:
        with launched(width, setting):
            row = next(compared(net, depth, width, nets, batch, device, make, rounds))
        yield row | dict(zip(("warps", "stages", "samples"), setting, strict=True))


@contextlib.contextmanager
def launched(width: int, setting: tuple[int, int, int]) -> Iterator[None]:
    from flowstudy.train.stacks.four_launches import nets  # Triton is not everywhere

    size = nets.tiled(width)
    before = nets.PASSES[size]
    nets.PASSES[size] = nets.Launch(*setting)
    try:
        yield
    finally:
        nets.PASSES[size] = before
