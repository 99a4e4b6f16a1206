"""Table 1's convolutional nets on MNIST, highway first, with as many epochs as end before the deadline."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from flowstudy.train import MNIST_RECIPE, conv_grid, load_images, train_conv_nets

from .conv_steps import ms_a_step_of
from .record import Record
from .searches import RESERVE, parameters

TABLE_1 = "table 1"  # the part's name
STUDY = "mnist_conv"
CURVES = f"{STUDY}.csv"  # in the store
EPOCHS = (300, 200, 100, 60, 30, 10, 4, 2, 1)  # and no more than the profile asks for
ALLOWED = 1.25  # a run's time over that of its steps: what is captured and evaluated
BLOCKS = ("highway", "plain")


def train_table_1(device: torch.device, store: Path, record: Record) -> None:
    """Train net by net into `store`, and record each; what would not end in time is recorded as skipped."""
    curves: list[pd.DataFrame] = []
    for block in BLOCKS:
        record.attempt(TABLE_1, lambda block=block: run_of(block, device, store, record, curves), share=0.95)
        if curves:
            pd.concat(curves).to_csv(store / CURVES, index=False)
            record.attempt(TABLE_1, lambda: record.keep_store(store) or [], share=1.0)


def run_of(block: str, device: torch.device, store: Path, record: Record, curves: list[pd.DataFrame]) -> Iterator[dict]:
    asked = parameters(record.profile, STUDY)
    [net], size = asked.get("nets", ["mnist_8"]), 28
    data = load_images(asked.get("dataset", "digits"), size, train_samples=asked.get("train_samples"), device=device)
    recipe = replace(MNIST_RECIPE, epochs=asked.get("epochs", 12), drops=tuple(asked.get("drops", ())))
    ms = ms_a_step_of(net, block, tuple(data.x_train.shape[1:]), recipe, device, batches=50)
    an_epoch = 1e-3 * ms * -(-len(data.x_train) // recipe.batch_size)
    fits = [epochs for epochs in EPOCHS if epochs <= recipe.epochs
            and ALLOWED * epochs * an_epoch <= record.left() - RESERVE]
    row = {"net": net, "block": block, "ms a step": ms, "asked for": recipe.epochs, "epochs": fits[0] if fits else None}
    print(f"{net} {block}: {row['epochs']} epochs", flush=True)
    if not fits:
        yield row | {"note": "skipped: an epoch would not end in time"}
        return
    started = time.monotonic()
    frame = train_conv_nets(conv_grid([net], [block], range(1)), data, replace(recipe, epochs=fits[0]), store=store,
                            progress=False)
    curves.append(frame)
    yield row | {"estimate [s]": ALLOWED * fits[0] * an_epoch, "taken [s]": time.monotonic() - started,
                 "loss": frame["loss"].iloc[-1], "test accuracy": frame["test_accuracy"].iloc[-1]}
