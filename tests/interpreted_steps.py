"""Triton's steps in its interpreter on a CPU, beside torch's: a process of its own, as Triton is set up when imported.

    python tests/interpreted_steps.py '[["highway", ["tanh"], 50, 20], ...]'

Each case is a kind of net, the activations of the stack's nets, a width and a batch.  It prints, as JSON, how far the
weights, velocities and losses of either are from those of float64, relative to their size, after some steps.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from flowstudy import HighwayNet, PlainNet, ResidualNet, initialize
from flowstudy.train import stack
from flowstudy.train.batches import batches, padded_size
from flowstudy.train.stacks.four_launches.nets import FourLaunches
from flowstudy.train.stacks.fully_connected import StackedFullyConnected, affine_names

KINDS = {"plain": PlainNet, "highway": HighwayNet, "residual": ResidualNet}
FEATURES, CLASSES, DEPTH, STEPS = 70, 10, 4, 3  # 70 features are two tiles, the second not full


def trained(kind: str, activations: list[str], width: int, batch: int, dtype: torch.dtype, four: bool,
            poisoned: bool = False) -> dict[str, torch.Tensor]:
    """Weights, velocities and losses by name, in float64: three steps, the last of them on a batch that is not full."""
    made = [initialize(KINDS[kind](FEATURES, width, DEPTH, CLASSES, activations[0]), "glorot_normal", seed=seed)
            for seed in range(len(activations))]
    draw = torch.Generator().manual_seed(0)
    samples = batch * STEPS - max(1, batch // 3)
    x = torch.randn(samples, FEATURES, generator=draw)
    y = torch.randint(CLASSES, (samples,), generator=draw)
    many = stack(made)
    state = {name: value.to(dtype) for name, value in many.state.items()}
    if poisoned:
        state["blocks.1.affine.weight"][0, 0, 0] = torch.nan
    momentum = torch.linspace(0.3, 0.9, len(made), dtype=dtype)
    plan, data = batches(samples, batch, 0, 0), (momentum, x.to(dtype), y, padded_size(batch), tuple(activations))
    if four:
        nets = FourLaunches(many.template, kind, affine_names(many.template), state, *data)
    else:
        nets = StackedFullyConnected(many.template, state, *data)
    nets.set_rate(torch.linspace(0.02, 0.05, len(made), dtype=dtype))
    for index, weight in zip(*plan, strict=True):
        nets.step(index, weight)
    parts = {"weight": nets.parameters(), "velocity": nets.velocities(), "loss": {"": nets.loss()}}
    return {f"{part} {name}": value.double() for part, own in parts.items() for name, value in own.items()}


def errors(kind: str, activations: list[str], width: int, batch: int) -> dict[str, list[float]]:
    """By part: the largest relative error of Triton's and of torch's float32."""
    exact = trained(kind, activations, width, batch, torch.float64, four=False)
    ours, theirs = (trained(kind, activations, width, batch, torch.float32, four) for four in (True, False))
    return {part: [max(((found[name] - value).norm() / value.norm()).item()
                       for name, value in exact.items() if name.startswith(part)) for found in (ours, theirs)]
            for part in ("weight", "velocity", "loss")}


def neighbours(kind: str) -> list[bool]:
    """Of a stack whose first net has a nan: whether each net is finite, and whether the second is as without it."""
    with_nan, without = (trained(kind, ["relu", "tanh"], 10, 7, torch.float32, four=True, poisoned=poisoned)
                         for poisoned in (True, False))
    finite = [bool(torch.stack([value[net].isfinite().all() for value in with_nan.values()]).all()) for net in (0, 1)]
    return [*finite, all(torch.equal(value[1], without[name][1]) for name, value in with_nan.items())]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([neighbours(*case) if len(case) == 1 else errors(*case) for case in json.loads(sys.argv[1])]))
