"""What planning and storing cost beside the work itself: milliseconds a cell, for a sweep of many tiny cells.

    python -m benchmarks.store [--cells 10000] [--group 20] [--json FILE]
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd

from flowstudy.sweep import Store, grid
from flowstudy.sweep.plan import groups, shard_of
from flowstudy.sweep.records import remember_plan, remembered_plans
from flowstudy.sweep.status import status

from .timing import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--group", type=int, default=20, help="cells of one file")
    parser.add_argument("--json", type=Path, help="keep the table here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = steps_of_a_sweep(arguments.cells, arguments.group, Path(folder))
    seconds["all but (...)"] = sum(took for step, took in seconds.items() if not step.startswith("("))
    rows = [{"step": step, "seconds": took, "ms a cell": 1e3 * took / arguments.cells}
            for step, took in seconds.items()]
    report("A sweep without its work", rows, {"cells": arguments.cells, "cells a file": arguments.group},
           arguments.json)


def steps_of_a_sweep(count: int, size: int, folder: Path) -> dict[str, float]:
    """Seconds of what `run` does beside measuring: a first call, then one that finds all stored."""
    seconds: dict[str, float] = {}

    def timed(step: str, call):
        started = time.perf_counter()
        value = call()
        seconds[step] = time.perf_counter() - started
        return value

    cells = timed("make the cells", lambda: grid(depth=[5, 10], learning_rate=[0.1, 0.2], seed=range(count // 4)))
    store = Store(folder)
    timed("hash them", lambda: [cell.key for cell in cells])
    timed("ask an empty store", lambda: store.missing(cells, "things"))
    timed("remember the plan", lambda: remember_plan(folder, "training_loss", {}, "things", cells))
    parts = timed("group", lambda: groups(cells, size))
    timed("(deal out 8 shards)", lambda: shard_of(cells, 1, 8))
    rows = [pd.DataFrame({"cell": range(len(part)), "loss": 0.5}) for part in parts]
    timed("look for each file", lambda: [store.holds(part, "things") for part in parts])
    timed("append", lambda: [store.append("things", part, made, {"seconds": 1.0, "finished": "2026-01-01T00:00:00Z"})
                             for part, made in zip(parts, rows, strict=True)])
    timed("load", lambda: store.load(cells, "things"))
    again = Store(folder)
    timed("ask a full store", lambda: again.missing(cells, "things"))
    timed("(ask it again)", lambda: again.missing(cells, "things"))
    timed("(read the plan)", lambda: remembered_plans(folder))
    timed("(status)", lambda: status(folder))
    return seconds


if __name__ == "__main__":
    main()
