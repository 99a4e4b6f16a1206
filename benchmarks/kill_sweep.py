"""Sweeps killed with SIGKILL at random moments, run again, and compared, every bit, with one that was left alone.

They train, and write a table or a checkpoint every few milliseconds, so that kills meet all of it.  With several
processes they share a plan and a store, and each is killed at a moment of its own; so is the training that a monitor
watches beside them, which must keep every record but the last.

    python -m benchmarks.kill_sweep [--kills 30] [--processes 1] [--seed 0]

Exit status 0: every resumed frame is the same, no file is left but tables and plans, and no record is lost or false.
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

from flowstudy import GradientMonitor
from flowstudy.data import load_dataset
from flowstudy.sweep import grid, run
from flowstudy.sweep.store.identity import MARK

STEPS = 2000
PLAN = grid(net=["plain", "highway"], depth=[3, 5], seed=range(6), epochs=40, width=8, train_samples=200, batch_size=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1, help="that sweep together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_dataset("digits")  # in the parent, so that a kill meets the sweep and not the reading of the data
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(kill_and_compare(Path(folder), arguments.kills, arguments.processes,
                                  np.random.default_rng(arguments.seed)))


def kill_and_compare(folder: Path, kills: int, processes: int, rng: np.random.Generator) -> bool:
    """Whether anything went wrong; prints a line a kill."""
    started = time.perf_counter()
    finish(folder / "whole")
    whole, seconds = pd.read_pickle(folder / "whole.frame"), time.perf_counter() - started
    print(f"left alone: {len(whole)} rows in {seconds:.2f} s")
    records, wrong, alive = watched(None), 0, 0
    for kill in range(kills):
        store, records_kept = folder / str(kill), folder / f"{kill}.records"
        moments = sorted(rng.uniform(0, processes * seconds, processes + 1))
        children = rng.permutation([*(fork(lambda store=store: sweep(store)) for _ in range(processes)),
                                    fork(lambda kept=records_kept: watched(kept))]).tolist()
        alive += kill_at(children, moments)
        left = files_of(store) + files_of(records_kept)
        finish(store)
        same = pd.read_pickle(folder / f"{kill}.frame").equals(whole)
        kept = kept_records(records_kept, records)
        unexplained = [name for name in files_of(store) + files_of(records_kept) if not is_explained(name)]
        wrong += not same or kept is None or bool(unexplained)
        print(f"killed after {', '.join(f'{moment:.2f}' for moment in moments)} s, with "
              f"{sum(name.endswith('.parquet') for name in left)} tables, "
              f"{sum(name.endswith('.pt') for name in left)} checkpoints"
              f"{' and a half-written file' * any(name.endswith('.tmp') for name in left)}: "
              f"{'same frame' if same else 'ANOTHER FRAME'}, {'FALSE RECORDS' if kept is None else f'{kept} records'}"
              f"{f', left: {unexplained}' if unexplained else ''}")
    print(f"{kills} kills, {alive} of a process that was still running, {wrong} wrong")
    return wrong > 0


def kill_at(children: list[int], moments: list[float]) -> int:
    """Kill each child at its moment; how many of them had not ended by then."""
    started, alive = time.perf_counter(), 0
    for child, moment in zip(children, moments, strict=True):
        time.sleep(max(0.0, started + moment - time.perf_counter()))
        os.kill(child, signal.SIGKILL)
        alive += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    return alive


def watched(store: Path | None) -> pd.DataFrame:
    """The record of a training that writes one every few milliseconds where a store is given."""
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with GradientMonitor(model, store=store) as monitor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return monitor.frame


def kept_records(store: Path, whole: pd.DataFrame) -> int | None:
    """How many records a killed training has left; None where they are not the first ones, one after another."""
    if not any(name.endswith(".parquet") and (store / name).stat().st_size for name in files_of(store)):
        return 0  # killed before the first
    frame = GradientMonitor.load(store)
    return frame["step"].nunique() if frame.equals(whole.iloc[:len(frame)]) else None


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
    return path.suffix == ".parquet" or path.match("plans/*.json") or path.name.startswith(MARK)


if __name__ == "__main__":
    main()
