"""Several stacks in training at once on one GPU, each on a stream of its own."""

from collections.abc import Iterator, Sequence

import torch

from .. import training
from ..timing import seconds_of
from .parts import WIDTHS, Sizes, Steps, ms_a_step
from .record import Record

ROUNDS = 10  # of steps, a CUDA graph's replay each, between two waits


def together(device: torch.device, sizes: Sizes, record: Record) -> Iterator[dict]:
    """ms in which every stack of a set makes a step, alone one after the other and side by side."""
    alone: dict[Steps, float] = {}
    for depths in (*[(depth,) for depth in sizes.depths], sizes.depths[-2:], sizes.depths):
        setups = [Steps(net, depth, width, sizes.nets) for depth in depths for net, width in WIDTHS.items()]
        for setup in setups:
            if setup not in alone:
                alone[setup] = ms_a_step(setup, device, sizes.rounds)["ms a step"]
        apart, beside = sum(alone[setup] for setup in setups), ms_a_round(setups, device, sizes.rounds)
        yield {"stacks": ", ".join(f"{setup.net} {setup.depth}" for setup in setups), "nets": sizes.nets,
               "one after the other [ms]": apart, "side by side [ms]": beside, "ratio": beside / apart}


def ms_a_round(setups: Sequence[Steps], device: torch.device, rounds: int = 3) -> float:
    x = torch.randn(training.SAMPLES, training.FEATURES, device=device)
    y = torch.randint(training.CLASSES, (training.SAMPLES,), device=device)
    made = [training.ours(one.nets, one.depth, x, y, one.batch, one.make, one.backend, most=8) for one in setups]
    streams = [torch.cuda.Stream(device) for _ in made]

    def go() -> None:
        for _ in range(ROUNDS):
            for (step, _, _), stream in zip(made, streams, strict=True):
                with torch.cuda.stream(stream):
                    step()

    return 1e3 * seconds_of({"go": go}, device, rounds)["go"] / ROUNDS / made[0][1]
