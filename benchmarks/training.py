"""Training many deep nets: net by net as PyTorch users do it, and stacked as we do, in one run.

    python -m benchmarks.training [--device cuda] [--depth 50] [--nets 40] [--batch 20] [--compile] [--json FILE]

Highway nets of width 50 on made-up MNIST (784 features), SGD with momentum, no evaluation.  `net-steps/s` is steps per
second x nets; the ratio is to the loop of the same depth and batch size, on one thread or on all, whichever is
better.  On a CPU ours come twice: steps of torch's calls, and compiled ones.  `of product rate` is the share of the
machine's measured rate of float32 matrix products, arithmetic counted as 6 operations per weight and sample.  MB: on
CUDA the peak; on a CPU the tensors of the nets in training.  Set-up (capture, compilation, first step) is apart.  On a
machine that does something else the ratios mean nothing.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from flowstudy import HighwayNet
from flowstudy.nets import HighwayBlock, PlainBlock
from flowstudy.train import stack
from flowstudy.train.batches import batches, padded_size
from flowstudy.train.stacks.any_module import StackedModules
from flowstudy.train.stacks.compiled.compiler import BACKENDS
from flowstudy.train.stacks.four_launches.there import why_not
from flowstudy.train.stacks.group import Group

from .timing import machine, product_rate, report, seconds_of, synchronize

FEATURES, CLASSES, WIDTH, SAMPLES = 784, 10, 50, 2_000
LOOP = "loop, net by net"
Steps = Callable[[], object]


def main(device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
         depth: Annotated[list[int], typer.Option(help="hidden layers; may be given several times")] = (10, 50, 100),
         nets: Annotated[list[int], typer.Option(help="stack sizes")] = (1, 5, 50, 100),
         batch: Annotated[list[int], typer.Option(help="samples a step")] = (20, 100),
         conv: Annotated[bool, typer.Option("--conv", help="convolutional nets: stacked or one by one")] = False,
         compile: Annotated[bool, typer.Option("--compile", help="the loop under torch.compile too (minutes)")] = False,
         rounds: Annotated[int, typer.Option(help="the best of so many")] = 5,
         json: Annotated[Path | None, typer.Option(help="keep the table here")] = None) -> None:
    place = torch.device(device)
    about = machine(place)
    if conv:
        rows = [row for width in (16, 32) for count in (1, 4, 8)
                for row in compare_convolutional(place, width, count, rounds)]
        report("Training steps, convolutional highway nets, batch 100, one thread", rows, about, json)
        return
    rate = product_rate(place, torch.float32)
    rows = [row for layers in depth for size in batch
            for row in compare(place, layers, size, nets, compile, rounds, rate)]
    report(f"Training steps, highway nets of width {WIDTH}", rows, about, json)


def compare(device: torch.device, depth: int, batch: int, nets: list[int], compile: bool, rounds: int,
            rate: float) -> list[dict]:
    x = torch.randn(SAMPLES, FEATURES, device=device)
    y = torch.randint(CLASSES, (SAMPLES,), device=device)
    loops = {LOOP: (1, lambda net: net), LOOP + ", compiled": (1, torch.compile)}
    contenders, rows = {}, []
    for name, (count, wrap) in loops.items():
        if wrap is torch.compile and not compile:
            continue
        contenders[name] = prepared(lambda w=wrap: loop(net_of(depth).to(device), w, x, y, batch), device, count)
    for backend, count in itertools.product(backends(device), nets):
        contenders[f"{backend}, {count} nets"] = prepared(
            lambda b=backend, k=count: ours(k, depth, x, y, batch, backend=b), device, count)
    seconds = best_threads({name: made["steps"] for name, made in contenders.items()}, device, rounds)
    weights = sum(p.numel() for p in net_of(depth).parameters() if p.ndim == 2)
    for name, made in contenders.items():
        per_second = made["nets"] * made["count"] / seconds[name]
        rows.append({"depth": depth, "batch": batch, "contender": name, "net-steps/s": per_second,
                     "ms a net-step": 1e3 / per_second, "of product rate": 6 * weights * batch * per_second / rate,
                     "MB": made["bytes"]() / 1e6, "set-up [s]": made["set-up"]})
    base = rows[0]["net-steps/s"]
    return [row | {"ratio": row["net-steps/s"] / base} for row in rows]


def backends(device: torch.device) -> tuple[str, ...]:
    """What can train the library's fully connected nets there."""
    if device.type == "cpu":
        return BACKENDS
    return ("cuda graph",) if why_not(device) else ("triton", "cuda graph")


def compare_convolutional(device: torch.device, width: int, nets: int, rounds: int) -> list[dict]:
    """One thread for all: on a CPU, nets one by one have a core each."""
    torch.set_num_threads(1)
    x, y = torch.randn(200, 1, 28, 28, device=device), torch.randint(CLASSES, (200,), device=device)
    many = stack([conv_net(width) for _ in range(nets)], device)
    index, weight = torch.arange(100, device=device), torch.full((100,), 0.01, dtype=torch.float64, device=device)

    def part(of: slice) -> StackedModules:
        state = {name: value[of] for name, value in many.state.items()}
        return StackedModules(many.template, state, torch.full((len(range(nets)[of]),), 0.9), x, y)

    stacked, single = part(slice(nets)), [part(slice(i, i + 1)) for i in range(nets)]
    seconds = seconds_of({"stacked": lambda: stacked.step(index, weight),
                          "one by one": lambda: [one.step(index, weight) for one in single]}, device, rounds)
    return [{"width": width, "nets": nets, "how": name, "ms a net-step": 1e3 * value / nets,
             "ratio": value / seconds["one by one"]} for name, value in seconds.items()]


def conv_net(width: int) -> nn.Module:
    """The paper's MNIST net without dropout."""
    def layers(count: int) -> list[nn.Module]:
        return [HighwayBlock(nn.Conv2d(width, 2 * width, 3, padding=1), "relu", -1.0) for _ in range(count)]

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(PlainBlock(nn.Conv2d(1, width, 5), "relu"), *layers(2), pool(), *layers(3), pool(), *layers(3),
                         nn.MaxPool2d(2, 2), nn.Flatten(), nn.Linear(9 * width, CLASSES))


def best_threads(contenders: dict[str, Steps], device: torch.device, rounds: int) -> dict[str, float]:
    """Seconds; the loops' the better of one thread and all, ours with all."""
    threads = torch.get_num_threads()
    seconds = seconds_of(contenders, device, rounds)
    torch.set_num_threads(1)
    single = seconds_of({name: call for name, call in contenders.items() if name.startswith(LOOP)}, device, rounds)
    torch.set_num_threads(threads)
    return {name: min(value, single.get(name, value)) for name, value in seconds.items()}


def prepared(make: Callable[[], tuple[Steps, int, Callable[[], int]]], device: torch.device, nets: int) -> dict:
    """Steps that have run once, and what that took beyond a second run."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    steps, count, size = make()
    times = []
    for _ in range(2):
        steps()
        synchronize(device)
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"steps": steps, "count": count, "nets": nets, "set-up": max(0.0, 2 * times[0] - times[1]),
            "bytes": (lambda: peak) if peak is not None else size}


def net_of(depth: int) -> nn.Module:
    return HighwayNet(FEATURES, WIDTH, depth, CLASSES, "tanh", gate_bias=-3.0)


def loop(net: nn.Module, wrap: Callable[[nn.Module], nn.Module], x: torch.Tensor, y: torch.Tensor,
         batch: int) -> tuple[Steps, int, Callable[[], int]]:
    """The best that a plain loop does: gates fused with H, foreach SGD, the data on the device."""
    run = wrap(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9, foreach=True)
    index = torch.randperm(SAMPLES)[:10 * batch].view(10, batch).to(x.device)

    def steps() -> None:
        for part in index:
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(x[part]), y[part]).backward()
            optimizer.step()

    return steps, len(index), lambda: 3 * sum(p.nbytes for p in net.parameters())


def ours(nets: int, depth: int, x: torch.Tensor, y: torch.Tensor, batch: int,
         make: Callable[[int], nn.Module] = net_of, backend: str | None = None,
         most: int = 80) -> tuple[Steps, int, Callable[[], int]]:
    many = stack([make(depth)] * nets, x.device)  # equal nets: a step takes as long
    group = Group(many, torch.full((nets,), 0.9), x, y, padded_size(batch), backend)
    group.set_rate(torch.full((nets,), 0.005))
    count = min(most, 5 if x.device.type == "cpu" else 80)
    plan = batches(SAMPLES, batch, 0, 0).part(0, min(count, SAMPLES // batch))
    return lambda: group.run(plan), len(plan), lambda: sum(chunk.bytes() for chunk in group.chunks)


if __name__ == "__main__":
    typer.run(main)
