"""Walks a failing disk through every call of some work, under injector.c, and says as JSON what became of it.

    python tests/faults/walk.py sweep [--every 1]

Each call of each operation fails alone, and then with all after it, by each of the ways in which it can; with
`--every 7` each seventh of these.  Afterwards the disk is well again, and everything must be there: a line for each law
that was broken is in `wrong`.
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import torch
from injector import FAULTS, calls_of, failing
from torch import nn

import flowstudy as fs
from flowstudy import whole_file
from flowstudy.figures.gallery import keep_gallery, write_page
from flowstudy.plots.save import save
from flowstudy.sweep import Store, StoreError, grid, run
from flowstudy.sweep.status import status
from flowstudy.sweep.workers import local
from flowstudy.train import Checkpoint

PLAN = grid(net=["plain", "highway"], depth=2, seed=range(2), epochs=3, width=3, train_samples=20, batch_size=10)
MEASURES = ["training_loss", "accuracy"]


class Work:
    """Something that uses a folder; `prepare` makes what is there before, `do` is what the disk fails in."""

    def __init__(self, folder: Path):
        self.folder = folder

    def prepare(self) -> None:
        self.folder.mkdir()

    def do(self) -> None:
        raise NotImplementedError

    def check(self) -> Iterator[str]:
        """What is wrong once the disk is well again."""
        raise NotImplementedError


# --- sweeps ----------------------------------------------------------------------------------------------------------


def sweep(store: Path) -> dict[str, pd.DataFrame]:
    return run(PLAN, measure=MEASURES, store=store, device="cpu", progress=False, nets_at_once=2, checkpoint_every=0.0)


class Sweep(Work):
    """A store is begun; what is asked of it afterwards is what a disk without faults gave."""

    whole: dict[str, pd.DataFrame] | None = None

    def do(self) -> None:
        with suppress(StoreError):
            self.same(sweep(self.folder / "store"))

    def same(self, frames: dict[str, pd.DataFrame]) -> bool:
        if Sweep.whole is None:
            Sweep.whole = frames
        return all(frames[name].equals(Sweep.whole[name]) for name in MEASURES)

    def check(self) -> Iterator[str]:
        before = set(self.folder.rglob("*.parquet"))
        if not self.same(sweep(self.folder / "store")):
            yield "the frame is another one"
        yield from (f"{path.name} is gone" for path in before if not path.exists())
        yield from whats_left(self.folder)
        for name, rows in Sweep.whole.items():
            (table,) = (self.folder / "store").glob(f"{name}-*")
            if sorted(pd.read_parquet(table)["cell"]) != sorted(rows["cell"]):
                yield f"{name} has rows twice, or not at all"


class Resume(Sweep):
    """A store that a killed run left: a table without its second measurement, a checkpoint and the one before it."""

    made: Path | None = None

    def prepare(self) -> None:
        if Resume.made is None:
            Resume.made = self.killed_run(self.folder.with_name("killed"))
        shutil.copytree(Resume.made, self.folder)

    def killed_run(self, folder: Path) -> Path:
        save_state, saves = Checkpoint.save, itertools.count(1)

        def killed_later(checkpoint: Checkpoint, state: dict) -> None:
            save_state(checkpoint, state)
            if next(saves) == 5:  # of three for each of two groups
                raise KeyboardInterrupt

        Checkpoint.save = killed_later
        try:
            with suppress(KeyboardInterrupt):
                sweep(folder / "store")
        finally:
            Checkpoint.save = save_state
        assert list(folder.rglob("*.pt")) and list(folder.rglob("*.pt.before")), "no checkpoint was left"
        return folder

    def do(self) -> None:
        super().do()
        with suppress(StoreError):
            status(self.folder / "store")
        with suppress(StoreError):
            Store(self.folder / "store").tables()


def whats_left(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.name.endswith((".unreadable", ".pt", ".before")) or path.parent.name == "failed":
            yield f"{path.name} is left"


# --- a monitor -------------------------------------------------------------------------------------------------------


def train(store: Path | None, around: Callable = suppress) -> tuple[fs.GradientMonitor, list[float]]:
    """Ten steps; `around` is what the disk does meanwhile."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = fs.GradientMonitor(model, store=store)
    with monitor:
        for _ in range(10):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return monitor, [p.sum().item() for p in model.parameters()]


class Monitor(Work):
    """A training that is watched ends as one that is not, with every record in the frame, and those on disk whole."""

    trained: list[float] | None = None
    monitor: fs.GradientMonitor | None = None

    def prepare(self) -> None:
        super().prepare()
        if Monitor.trained is None:
            Monitor.trained = train(None)[1]

    def do(self) -> None:
        self.monitor, weights = None, None
        with suppress(OSError):  # refused before a step is made
            whole_file.patiently((self.folder / "records").mkdir)
            self.monitor, weights = train(self.folder / "records")
        assert weights in (None, Monitor.trained), "the training went another way"
        with suppress(OSError, ValueError):
            fs.GradientMonitor.load(self.folder / "records")

    def check(self) -> Iterator[str]:
        if self.monitor is None:
            return
        frame = self.monitor.frame
        if frame["step"].nunique() != 10:
            yield f"the frame has {frame['step'].nunique()} records"
        self.monitor.detach()  # once more: what could not be written is
        if not fs.GradientMonitor.load(self.folder / "records").equals(frame):
            yield "the folder has other records"
        yield from (f"{path.name} is left" for path in self.folder.rglob("*.tmp"))


# --- figures ---------------------------------------------------------------------------------------------------------


class Figures(Work):
    """What was drawn before stays until what is drawn anew is there: each file is the old one or the new one, whole."""

    OLD, NEW = 1.0, 2.0

    def prepare(self) -> None:
        self.folder.mkdir()
        self.draw(self.OLD)

    def do(self) -> None:
        with suppress(OSError):
            self.draw(self.NEW)

    def draw(self, value: float) -> None:
        import matplotlib.figure

        figure = matplotlib.figure.Figure(figsize=(0.5, 0.5))
        figure.add_axes((0, 0, 1, 1)).plot([0, value])
        frame = pd.DataFrame({"layer": range(3), "error": [0.0, 1.0, value]})
        run, study = self.folder / "run", self.folder / "run" / "lesions"
        save({"lesions": figure}, {"lesions": frame}, study)
        for name, content in {"lesions.ipynb": NOTEBOOK, "stamp.json": stamp(value)}.items():
            whole_file.write_whole(study / name, content.encode())
        write_page(run, ["lesions"])
        keep_gallery(run, self.folder / "gallery", ["lesions"])

    def check(self) -> Iterator[str]:
        now = self.files(self.folder)
        old, new = ({name: content for name, content in self.drawn(value).items()} for value in (self.OLD, self.NEW))
        for name in old:
            if now.get(name) not in (old[name], new[name]):
                yield f"{name} is {'gone' if name not in now else 'neither the old one nor the new one'}"
        self.draw(self.NEW)
        if {name: content for name, content in self.files(self.folder).items() if not name.endswith(".tmp")} != new:
            yield "drawn again it is another page"

    def drawn(self, value: float) -> dict[str, bytes]:
        if value not in DRAWN:
            elsewhere = Figures(Path(tempfile.mkdtemp()))
            elsewhere.draw(value)
            DRAWN[value] = self.files(elsewhere.folder)
            shutil.rmtree(elsewhere.folder)
        return DRAWN[value]

    def files(self, folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DRAWN: dict[float, dict[str, bytes]] = {}
NOTEBOOK = json.dumps({"cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Why?\n\nSo."}],
                       "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def stamp(value: float) -> str:
    return json.dumps({"profile": "smoke", "parameters": {"value": value}, "seconds": value, "device": "CPU",
                       "finished": "today", "commit": "none", "versions": {},
                       "files": {"lesions.svg": "", "lesions.png": "", "lesions.pdf": "", "lesions.parquet": ""}})


# --- the walk --------------------------------------------------------------------------------------------------------


WORKS = {"sweep": Sweep, "resume": Resume, "monitor": Monitor, "figures": Figures}


def walk(kind: type[Work], folder: Path, every: int) -> tuple[Counter, list[str]]:
    """How often each operation failed, and what was wrong after it."""
    numbers, failed, wrong = itertools.count(), Counter(), []

    def begin() -> Work:
        work = kind(folder / str(next(numbers)))
        work.prepare()
        return work

    work = begin()
    work.do()
    cases = []
    for operation, faults in FAULTS.items():
        work = begin()
        calls = calls_of(work.folder, operation, work.do)
        cases += list(itertools.product([operation], faults, range(1, calls + 1), [False, True]))[::every]
        shutil.rmtree(work.folder)
    for operation, fault, call, lasting in cases:
        work = begin()
        failed[operation] += 1
        try:
            with failing(work.folder, operation, fault, call, lasting=lasting):
                work.do()
            said = list(work.check())
        except Exception as error:
            said = [f"{type(error).__name__}: {error}"]
        where = f"{operation} {call}{' and on' * lasting}, error {fault}"
        wrong += [f"{where}: {one}" for one in said]
        shutil.rmtree(work.folder)
    return failed, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    whole_file.PAUSES = (0.0, 0.0, 0.0)
    data = local.load("digits", 20, torch.device("cpu"))
    local.load = lambda *_: data
    with tempfile.TemporaryDirectory() as folder:
        failed, wrong = walk(WORKS[arguments.work], Path(folder), arguments.every)
    json.dump({"failed": failed, "wrong": wrong}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
