"""Whole groups of the paper's searches, with as many epochs as end before the deadline."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

import flowstudy
from flowstudy.data.datasets import TRAIN_SAMPLES
from flowstudy.paper.best_net import SETTINGS
from flowstudy.paper.published import ours, published_loss
from flowstudy.sweep import Cell, grid, random_search, run

from .parts import Steps
from .record import Record
from .side_by_side import ms_a_round

EPOCHS = (400, 200, 100, 50, 20, 10, 4, 2, 1)  # what a group may have, and no more than its profile asks for
SHARE = 0.9     # of the time left, for one group
ALLOWED = 1.15  # a group's time over that of its steps, until a group has shown it
RESERVE = 10.0  # seconds, to pack the store
INIT = {"relu": "he_uniform", "tanh": "lecun_uniform"}  # of the study's notebook
DEPTHS = (10, 20, 50, 100)  # likewise
SEARCHES = "searches"  # the part's name
FIGURE = "figure 1: "  # how the names of its groups begin
BEST_NETS = 10  # seeds of the best setting


def search(device: torch.device, store: Path, record: Record) -> None:
    """Train group by group into `store`, and record each; what would not end in time is recorded as skipped."""
    over = ALLOWED
    wanted: dict[str, list[Cell]] = {}
    record.attempt(SEARCHES, lambda: wanted.update(plan(record.profile)) or [])
    for name, cells in wanted.items():
        rows = record.attempt(SEARCHES, partial(group, name, cells, device, store, record, over), share=0.95)
        if rows and rows[0]["epochs"]:
            over = max(1.05, 1.05 * rows[0]["over"])
            record.attempt(SEARCHES, lambda: record.keep_store(store) or [], share=1.0)


def plan(profile: str) -> dict[str, list[Cell]]:
    """Groups in the order of value, from the profile's parameters of `loss_vs_depth` and `gate_routing`."""
    search, best = parameters(profile, "loss_vs_depth"), parameters(profile, "gate_routing")
    fixed = {"init": INIT} | {key: search[key] for key in ("epochs", "batch_size", "dataset", "train_samples", "ranges",
                                                           "decay_law", "init") if key in search}
    cells = random_search(search["runs"], net=["highway", "plain"], depth=search.get("depths", DEPTHS), **fixed)
    groups: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.depth):  # stable: highway first
        groups.setdefault(f"{FIGURE}{cell.depth} layers", []).append(cell)
    first, *others = groups.items()
    best_nets = grid(**SETTINGS, depth=best.get("depth", 50), width=best.get("width", 50), seed=range(BEST_NETS),
                     **{key: best[key] for key in ("dataset", "epochs", "train_samples") if key in best})
    return dict([first, ("the paper's best setting", best_nets), *others])


def parameters(profile: str, study: str) -> dict[str, Any]:
    """What profiles.yaml has of it."""
    house = Path(flowstudy.__file__).parent
    studies = house / "studies" if (house / "studies").is_dir() else house.parent / "studies"
    return yaml.safe_load((studies / "profiles.yaml").read_text(encoding="utf-8"))[profile][study]


def group(name: str, cells: Sequence[Cell], device: torch.device, store: Path, record: Record,
          over: float) -> list[dict]:
    """A group's rows, one for each kind of net in it: how long all were to take and took, side by side, and the losses
    beside the authors'."""
    like, nets = cells[0], Counter(cell.net for cell in cells)
    per_epoch = math.ceil((like.train_samples or TRAIN_SAMPLES[like.dataset]) / like.batch_size)
    widths = {cell.net: cell.width for cell in cells}
    setups = [Steps(net, like.depth, widths[net], count, like.batch_size) for net, count in nets.items()]
    ms = ms_a_round(setups, device)
    an_epoch = 1e-3 * ms * per_epoch
    room = SHARE * (record.left() - RESERVE)
    fits = [epochs for epochs in EPOCHS if epochs <= like.epochs and over * epochs * an_epoch <= room]
    row = {"group": name, "ms a step": ms, "asked for": like.epochs, "epochs": fits[0] if fits else None}
    if not fits:
        print(f"{name}: skipped", flush=True)
        return [row | {"note": f"skipped: an epoch takes {an_epoch:.1f} s, {room:.1f} s were left for it"}]
    print(f"{name}: {fits[0]} epochs", flush=True)
    started = time.monotonic()
    loss = run([replace(cell, epochs=fits[0]) for cell in cells], measure="training_loss", store=store,
               device=str(device), progress=False)
    taken = time.monotonic() - started
    row |= {"estimate [s]": over * fits[0] * an_epoch, "taken [s]": taken, "over": taken / (fits[0] * an_epoch)}
    return [row | {"net": net, "nets": nets[net]} | found for net, found in losses(loss)]


def losses(loss: pd.DataFrame) -> Iterator[tuple[str, dict[str, float]]]:
    """Of each kind of net the best run's last loss and the mean of the best 10, and the authors' after 400 epochs."""
    for (net, depth), best, mean in ours(loss, 10):
        authors = {f"authors' {words}": published_loss(net, depth, name)
                   for words, name in (("best", "best"), ("best 10", "best_10"))}
        yield net, {"best": best, "best 10": mean} | {words: value for words, value in authors.items()
                                                     if not math.isnan(value)}
