"""The cost of planning and of the store: milliseconds per cell of each step, for a plan of thousands of tiny cells.

    python -m benchmarks.store [--cells 10000] [--json FILE]

`all but measuring` is a whole `run` whose measurement does nothing; `again` finds everything stored.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from flowstudy.sweep import Store, grid, run
from flowstudy.sweep.looks.moment import CellsMoment
from flowstudy.sweep.looks.table import MEASUREMENTS
from flowstudy.sweep.plan import groups

from .timing import machine, report


def main(cells: Annotated[int, typer.Option(help="of the plan", min=100)] = 10_000,
         json: Annotated[Path | None, typer.Option(help="keep the table here")] = None) -> None:
    rows: list[dict] = []

    def timed(step: str, call: Callable[[], object]) -> object:
        started = time.perf_counter()
        result = call()
        rows.append({"step": step, "ms a cell": 1e3 * (time.perf_counter() - started) / cells})
        return result

    plan = timed("make the cells", lambda: grid(net=["plain", "highway"], depth=[2, 3], width=2, train_samples=20,
                                                seed=range(cells // 4)))
    timed("their keys", lambda: [cell.key for cell in plan])
    timed("group them", lambda: groups(plan, 20))
    MEASUREMENTS["nothing"] = nothing
    with tempfile.TemporaryDirectory() as store:
        timed("all but measuring", lambda: run(plan, measure="nothing", store=store, device="cpu", progress=False))
        timed("again", lambda: run(plan, measure="nothing", store=store, device="cpu", progress=False))
        table = next(path.name for path in Path(store).iterdir() if path.name.startswith("nothing"))
        timed("what is missing, by a new process", lambda: Store(store).missing(plan, table))
    report(f"{len(plan)} cells", rows, machine(torch.device("cpu")), json)


def nothing(moment: CellsMoment, data: object) -> pd.DataFrame:
    return pd.DataFrame({"place": range(len(moment.cells)), "value": 0.0})


if __name__ == "__main__":
    typer.run(main)
