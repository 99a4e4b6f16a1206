"""Flips single bits of a store with every kind of file, and says as JSON what became of each.

    python tests/faults/flip.py [--flips 2000] [--seed 0]

After each flip the sweep, the convolutional run, `status` and the monitor's record are asked for again.  `found` flips
were said, and what was lost computed again; `harmless` ones changed no number (in a log, in the words before a digest,
in a file that is not needed).  `silent` (another number, without a word) and `ended` (an error) must not be.
"""

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import flowstudy as fs
from flowstudy.data import Dataset
from flowstudy.nets import initialize_as_authors, mnist_conv_net
from flowstudy.sweep import SweepError, grid, run
from flowstudy.sweep.looks.table import MEASUREMENTS, training_loss
from flowstudy.sweep.status import status
from flowstudy.sweep.workers import local
from flowstudy.train import Checkpoint, Recipe, train_conv

PLAN = grid(net=["plain", "highway"], depth=2, seed=range(2), epochs=2, width=3, train_samples=20, batch_size=10)
BAD = 1  # a seed
RECIPE = Recipe("pixels_over_256", 0.02, (), 2, batch_size=5)


class Killed(BaseException):
    pass


def measured(moment: object, data: object) -> pd.DataFrame:
    if any(cell.seed == BAD for cell in moment.cells):
        raise ZeroDivisionError
    return training_loss(moment, data)


def sweep(store: Path) -> pd.DataFrame:
    return run(PLAN, store=store, device="cpu", progress=False, nets_at_once=2, checkpoint_every=0.0)


def images() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(10, 1, 28, 28, generator=generator), torch.arange(10)
    return Dataset("noise", x, y, x, y, 10)


def convolve(store: Path) -> tuple[list[float], list[torch.Tensor]]:
    net = initialize_as_authors(mnist_conv_net(2, block="plain"), 0)
    history = train_conv(net, images(), RECIPE, checkpoint=store / "conv_nets" / "run.pt", seconds=0.0)
    return history.loss, [p.detach().clone() for p in net.parameters()]


def watch(folder: Path) -> pd.DataFrame:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with fs.GradientMonitor(model, store=folder) as monitor:
        for _ in range(70):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return monitor.frame


def make(store: Path) -> None:
    """Tables, plans, a cell that failed, a checkpoint and the one before, a convolutional result, a monitor's parts."""
    MEASUREMENTS["training_loss"] = measured
    with suppress(SweepError):
        sweep(store)
    save, saves = Checkpoint.save, []

    def killed_later(checkpoint: Checkpoint, state: dict) -> None:
        save(checkpoint, state)
        saves.append(checkpoint)
        if len(saves) == 2:
            raise Killed

    MEASUREMENTS["training_loss"] = training_loss
    Checkpoint.save = killed_later
    with suppress(Killed):
        sweep(store)
    Checkpoint.save = save
    convolve(store)
    watch(store / "monitor")
    for pattern in ("training_loss-*/*.parquet", "plans/*.json", "failed/*/*.json", "checkpoints/*/*.pt",
                    "checkpoints/*/*.pt.before", "conv_nets/*.pt", "monitor/*.parquet"):
        assert list(store.glob(pattern)), f"the store has no {pattern}"


def numbers(store: Path) -> dict[str, object]:
    """All that a user may ask of the store."""
    told = status(store).drop(columns=["seconds_left", "done", "missing", "failed"])
    loss, weights = convolve(store)
    return {"status": told, "sweep": sweep(store), "loss": loss, "weights": weights,
            "records": fs.GradientMonitor.load(store / "monitor")}


def same(one: dict, other: dict) -> bool:
    return (all(one[name].equals(other[name]) for name in ("sweep", "status", "records"))
            and one["loss"] == other["loss"] and all(map(torch.equal, one["weights"], other["weights"])))


def flip(store: Path, path: Path, bit: int, expected: dict) -> str:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    if path.suffix == ".before":  # which is read where there is no other
        path.with_suffix("").unlink()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = numbers(store)
        except Exception as error:
            return f"ended: {type(error).__name__}: {error}"
    told = [str(one.message) for one in said if path.name.removesuffix(".before") in str(one.message)]
    if told:  # what is said to be missing is, and all else is right
        lacks = {"records": expected["records"], "status": expected["status"]} if path.parent.name in (
            "monitor", "plans") else {}
        return "found" if same(found | lacks, expected) else f"silent: {told}, and other numbers"
    return "harmless" if same(found, expected) else "silent: other numbers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(arguments.seed)
    data = local.load("digits", 20, torch.device("cpu"))
    local.load = lambda *_: data
    counts, wrong = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        whole, store = Path(folder) / "whole", Path(folder) / "store"
        make(whole)
        shutil.copytree(whole, store)
        expected = numbers(store)
        files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size]
        for i in range(arguments.flips):
            name = files[i % len(files)]
            shutil.rmtree(store)
            shutil.copytree(whole, store)
            bit = int(rng.integers(8 * (store / name).stat().st_size))
            became = flip(store, store / name, bit, expected)
            kind = became.partition(":")[0]
            counts[f"{name.parts[0].partition('-')[0]}: {kind}"] += 1
            if kind in ("silent", "ended"):
                wrong.append(f"{name}, bit {bit}: {became}")
    json.dump({"counts": dict(sorted(counts.items())), "wrong": wrong}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
