"""The cost of watching gradients: a training step with GradientMonitor, and with other libraries' tools, in one run.

    python -m benchmarks.monitor [--device cuda] [--json FILE] [--rounds 30]

Every contender trains a net of its own, batch 128: the MLP with Adam and with plain SGD, the cheapest step there is,
the conv net with plain SGD.  They take turns, STEPS steps each, attaching and detaching included.  The ratio is to the
plain step.  Cockpit and BackPACK: `make peers`.
On CUDA, a second table counts what the profiler saw the host wait for.
"""

import itertools
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from flowstudy import GradientMonitor, PlainNet, initialize

from .timing import machine, report, seconds_of

BATCH, CLASSES, STEPS = 128, 10, 20
GRADIENT_NORM = ["log10_weight_gradient_norm"]
Train = Callable[[], None]


def mlp(layers: int = 20) -> tuple[nn.Module, Tensor]:
    """Tanh layers of width 64; a Sequential, as BackPACK needs it."""
    net = initialize(PlainNet(64, 64, layers, CLASSES, "tanh"), "glorot_normal", seed=0)
    layers = [m for layer in net.hidden_layers for m in (layer.affine, nn.Tanh())]
    return nn.Sequential(*layers, net.readout), torch.randn(BATCH, 64)


def conv_net() -> tuple[nn.Module, Tensor]:
    channels = [3, 16, 16, 32, 32]
    blocks = [m for i, o in itertools.pairwise(channels)
              for m in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
    head = [nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32 * 8 * 8, CLASSES)]
    return nn.Sequential(*blocks, *head), torch.randn(BATCH, 3, 32, 32)


# A name, what builds net and batch, the optimizer, and by what the number of rounds is divided.
Monitored = tuple[str, Callable[[], tuple[nn.Module, Tensor]], type[torch.optim.Optimizer], int]
MONITORED: tuple[Monitored, ...] = (("MLP, 20 layers, Adam", mlp, torch.optim.Adam, 1),
                                    ("MLP, 20 layers, SGD", mlp, torch.optim.SGD, 1),
                                    ("conv net, SGD", conv_net, torch.optim.SGD, 10))


class Task:
    """A net, its batch, its loss and its optimizer."""

    def __init__(self, build: Callable[[], tuple[nn.Module, Tensor]], device: torch.device,
                 optimizer: type[torch.optim.Optimizer] = torch.optim.SGD):
        torch.manual_seed(0)
        net, x = build()
        self.net, self.x = net.to(device), x.to(device)
        self.y = torch.randint(CLASSES, (BATCH,)).to(device)
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = optimizer(self.net.parameters(), lr=1e-3)

    def forward(self) -> Tensor:
        self.optimizer.zero_grad()
        return self.loss(self.net(self.x), self.y)

    def train(self) -> None:
        for _ in range(STEPS):
            self.forward().backward()
            self.optimizer.step()


# --- contenders: each makes a function that trains for STEPS steps ---------------------------------------------------


def plain(task: Task) -> Train:
    return task.train


def ours(every: int, **options: object) -> Callable[[Task], Train]:
    def contender(task: Task) -> Train:
        monitor = GradientMonitor(task.net, every=every, **options)

        def train() -> None:
            with monitor:
                task.train()

        return train

    return contender


def item_loop(task: Task) -> Train:
    """What most people write: a norm and a wait for each parameter."""
    norms = []

    def train() -> None:
        for _ in range(STEPS):
            task.forward().backward()
            norms.append({name: p.grad.norm().item() for name, p in task.net.named_parameters()})
            task.optimizer.step()

    return train


def stand_in_for_pkg_resources() -> None:
    """cockpit reads its version with pkg_resources, which setuptools 82 removed, and uses nothing else of it."""
    module = types.ModuleType("pkg_resources")
    module.get_distribution, module.DistributionNotFound = metadata.distribution, metadata.PackageNotFoundError
    sys.modules.setdefault("pkg_resources", module)


def cockpit(task: Task, economy: bool) -> Train:
    stand_in_for_pkg_resources()
    from backpack import extend
    from cockpit import Cockpit, quantities
    from cockpit.utils import schedules
    from cockpit.utils.configuration import configuration

    always = schedules.linear(1)
    wanted = configuration("economy", track_schedule=always) if economy else [quantities.GradNorm(always)]
    cockpit = Cockpit(extend(task.net).parameters(), quantities=wanted)
    task.loss, one_by_one, step = extend(task.loss), nn.CrossEntropyLoss(reduction="none"), iter(range(10**9))

    def train() -> None:
        for _, at in zip(range(STEPS), step, strict=False):
            task.optimizer.zero_grad()
            output = task.net(task.x)
            loss, losses = task.loss(output, task.y), one_by_one(output, task.y)
            info = {"batch_size": BATCH, "individual_losses": losses, "loss": loss, "optimizer": task.optimizer}
            with cockpit(at, info=info):
                loss.backward(create_graph=cockpit.create_graph(at))
            task.optimizer.step()

    return train


def batch_l2_grad(task: Task) -> Train:
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    extend(task.net)
    task.loss = extend(task.loss)

    def train() -> None:
        for _ in range(STEPS):
            loss = task.forward()
            with backpack(BatchL2Grad()):
                loss.backward()
            task.optimizer.step()

    return train


CONTENDERS: dict[str, Callable[[Task], Train]] = {
    "plain step": plain,
    "ours, gradient norms, every step": ours(1, quantities=GRADIENT_NORM),
    "ours, everything, every step": ours(1),
    "ours, gradient norms, every 10th": ours(10, quantities=GRADIENT_NORM),
    "ours, everything, every 10th": ours(10),
    ".item() loop, gradient norms": item_loop,
    "cockpit GradNorm": lambda task: cockpit(task, economy=False),
    "cockpit economy": lambda task: cockpit(task, economy=True),
    "BackPACK BatchL2Grad": batch_l2_grad,
}
NEEDS = {"cockpit GradNorm": "cockpit", "cockpit economy": "cockpit", "BackPACK BatchL2Grad": "backpack"}
MISSING = "not installed: make peers"


def main(device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
         json: Annotated[Path | None, typer.Option(help="keep the table here")] = None,
         rounds: Annotated[int, typer.Option(help="the best of so many; a tenth of it for the conv net")] = 30) -> None:
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # BackPACK's
    place = torch.device(device)
    report(f"A training step, batch {BATCH}", list(table(place, rounds)), machine(place), json)


def table(device: torch.device, rounds: int, monitored: tuple[Monitored, ...] = MONITORED) -> Iterator[dict]:
    for name, build, optimizer, divisor in monitored:
        yield from compare(name, partial(Task, build, device, optimizer), device, max(1, rounds // divisor),
                           waits=device.type == "cuda" and name == monitored[0][0])  # seconds for each; the same hooks


def compare(net: str, task: Callable[[], Task], device: torch.device, rounds: int, waits: bool) -> list[dict]:
    there = {name: make for name, make in CONTENDERS.items() if name not in NEEDS or find_spec(NEEDS[name])}
    seconds = seconds_of({name: make(task()) for name, make in there.items()}, device, repeats=rounds)
    rows = []
    for name in CONTENDERS:
        row = {"net": net, "contender": name}
        if name in seconds:
            row |= {"ms a step": 1e3 * seconds[name] / STEPS, "ratio": seconds[name] / seconds["plain step"]}
        else:
            row |= {"note": MISSING}
        if waits and name.startswith("ours"):
            row["waits a record"] = waits_per_record(task, name)
        rows.append(row)
    return rows


def waits_per_record(task: Callable[[], Task], name: str) -> float:
    """Calls in which the host waits for the device, less those of plain training, per record."""
    def waits(name: str) -> int:
        train = CONTENDERS[name](task())
        train()
        with torch.profiler.profile() as profile:
            train()
        return sum(event.count for event in profile.key_averages() if "Synchronize" in event.key)

    return (waits(name) - waits("plain step")) / (STEPS if "every step" in name else STEPS / 10)


if __name__ == "__main__":
    typer.run(main)
