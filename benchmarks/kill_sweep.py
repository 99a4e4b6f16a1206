"""Sweeps killed with SIGKILL at random moments, run again, and compared, every bit, with one that was left alone.

They train, and write a table or a checkpoint every few milliseconds, so that kills meet all of it.

    python -m benchmarks.kill_sweep [--kills 30] [--seed 0]

Exit status 0: every resumed frame is the same, and no file is left but tables and plans.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from flowstudy.data import load_dataset
from flowstudy.sweep import grid, run

PLAN = grid(net=["plain", "highway"], depth=[3, 5], seed=range(6), epochs=40, width=8, train_samples=200, batch_size=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_dataset("digits")  # in the parent, so that a kill meets the sweep and not the reading of the data
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(kill_and_compare(Path(folder), arguments.kills, np.random.default_rng(arguments.seed)))


def kill_and_compare(folder: Path, kills: int, rng: np.random.Generator) -> bool:
    """Whether anything went wrong; prints a line a kill."""
    started = time.perf_counter()
    finish(folder / "whole")
    whole, seconds = pd.read_pickle(folder / "whole.frame"), time.perf_counter() - started
    print(f"left alone: {len(whole)} rows in {seconds:.2f} s")
    wrong = alive = 0
    for kill in range(kills):
        store = folder / str(kill)
        child, moment = fork(lambda store=store: sweep(store)), rng.uniform(0, seconds)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        alive += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = files_of(store)
        finish(store)
        same = pd.read_pickle(folder / f"{kill}.frame").equals(whole)
        unexplained = [name for name in files_of(store) if not is_explained(name)]
        wrong += not same or bool(unexplained)
        print(f"killed after {moment:.2f} s, with {sum(name.endswith('.parquet') for name in left)} tables, "
              f"{sum(name.endswith('.pt') for name in left)} checkpoints"
              f"{' and a half-written file' * any(name.endswith('.tmp') for name in left)}: "
              f"{'same frame' if same else 'ANOTHER FRAME'}{f', left: {unexplained}' if unexplained else ''}")
    print(f"{kills} kills, {alive} of a sweep that was still running, {wrong} wrong")
    return wrong > 0


def sweep(store: Path) -> None:
    run(PLAN, store=store, device="cpu", progress=False, nets_at_once=3,
        checkpoint_every=0.0).to_pickle(f"{store}.frame")


def finish(store: Path) -> None:
    status = os.waitpid(fork(lambda: sweep(store)), 0)[1]
    if status != 0:
        raise RuntimeError(f"the sweep in {store} ended with status {status}")


def fork(work: Callable[[], object]) -> int:
    """A child that has everything imported already; it leaves without this process's clean-up."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return child


def files_of(store: Path) -> list[str]:
    return [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()]


def is_explained(name: str) -> bool:
    path = Path(name)
    return not path.name.startswith(".") and (path.suffix == ".parquet" or path.match("plans/*.json"))


if __name__ == "__main__":
    main()
