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
            poison: dict[str, tuple[int, float]] | None = None) -> dict[str, torch.Tensor]:
    """Weights, velocities and losses by name, in float64: three steps, the last of them on a batch that is not full."""
    made = [initialize(KINDS[kind](FEATURES, width, DEPTH, CLASSES, activations[0]), "glorot_normal", seed=seed)
            for seed in range(len(activations))]
    draw = torch.Generator().manual_seed(0)
    samples = batch * STEPS - max(1, batch // 3)
    x = torch.randn(samples, FEATURES, generator=draw)
    y = torch.randint(CLASSES, (samples,), generator=draw)
    many = stack(made)
    state = {name: value.to(dtype) for name, value in many.state.items()}
    for name, (place, value) in (poison or {}).items():
        state[name][0].flatten()[place] = value
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


def neighbours(kind: str, name: str, value: float) -> list[bool]:
    """Of a stack whose first net has such a number: whether each net's loss is finite, torch's too, and whether the
    second net is as without it."""
    poison = {name: (1, value)}
    ours, theirs = (trained(kind, ["tanh", "relu"], 10, 7, torch.float32, four, poison) for four in (True, False))
    without = trained(kind, ["tanh", "relu"], 10, 7, torch.float32, four=True)
    return [*ours["loss "].isfinite().tolist(), *theirs["loss "].isfinite().tolist(),
            all(torch.equal(found[1], without[name][1]) for name, found in ours.items())]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([neighbours(*case) if len(case) == 3 else errors(*case) for case in json.loads(sys.argv[1])]))
