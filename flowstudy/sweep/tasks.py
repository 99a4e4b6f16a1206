"""A task is one group of same-structure cells: measured as one stack, stored as one file, safe to run again."""

import functools
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from flowstudy.train import Dataset, load_dataset

from .cells import Cell, digest
from .failures import Failure, failure, forget, is_refusal, remember
from .store import Store

Measurement = Callable[..., pd.DataFrame]
Load = Callable[[str, int | None, torch.device], Dataset]


@dataclass(frozen=True)
class Task:
    """All that a process needs to compute one group; it travels to workers pickled.

    Attributes:
        cells: of one structure.
        table: of the store at `store`, an absolute path that every worker sees.
        measurement: from `MEASUREMENTS`, with its `options`.
        device: "auto" or torch's name of it, where the task runs.
        flowstudy: version that planned it; a worker of another version refuses.
    """

    cells: tuple[Cell, ...]
    table: str
    store: Path
    measurement: Measurement
    options: dict
    device: str
    flowstudy: str = version("flowstudy")

    @property
    def key(self) -> str:
        """The same group for the same table is the same task."""
        return digest([self.table, *(cell.key for cell in self.cells)])

    @property
    def work(self) -> int:
        return sum(map(work, self.cells))


def work(cell: Cell) -> int:
    """Units of the progress bar: net-epochs, or 1 for a net that is measured as it starts."""
    return max(cell.epochs, 1)


def load(name: str, train_samples: int | None, device: torch.device) -> Dataset:
    data = load_dataset(name).flat().to(device)
    return data if train_samples is None else data.subset(train_samples)


def run_task(task: Task, tick: Callable[[int], object], store: Store, load: Load) -> list[Failure]:
    """Compute and store the task's cells; return those that failed alone.

    A group that raises is halved, down to single cells: one bad cell costs its neighbours a second run, not their
    rows.  So is a group that does not fit into memory.

    Raises:
        StoreError, a wrong option, or what loading the data set raises: nothing that a smaller group would change.
    """
    device = torch.device(found_device(task.device))
    data = load(task.cells[0].dataset, task.cells[0].train_samples, device)
    failures: list[Failure] = []
    waiting = [task.cells]
    while waiting:
        cells = waiting.pop(0)
        if store.holds(cells, task.table):  # computed by another process since, or before this one was lost
            tick(sum(map(work, cells)))
            continue
        error = attempt(task, cells, data, tick, store, device)
        if error is not None and len(cells) > 1:
            waiting[:0] = halves(cells)
        elif error is not None:
            failures.append(error)
            remember(task.store, task.table, [error])
            tick(work(cells[0]))
    return failures


def attempt(task: Task, cells: Sequence[Cell], data: Dataset, tick: Callable[[int], object], store: Store,
            device: torch.device) -> Failure | None:
    """Measure and append; what went wrong comes back as text, so that no traceback keeps the failed stack in memory."""
    started, ticked = time.perf_counter(), 0

    def count(units: int) -> None:
        nonlocal ticked
        ticked += units
        tick(units)

    try:
        rows = task.measurement(list(cells), data, count, **task.options)
    except Exception as error:
        if is_refusal(error):
            raise
        tick(-ticked)
        failed = failure(cells[0], error)
    else:
        count(sum(map(work, cells)) - ticked)
        store.append(task.table, cells, rows, provenance(device, time.perf_counter() - started))
        forget(task.store, task.table, cells)
        return None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return failed


def halves(cells: Sequence[Cell]) -> list[Sequence[Cell]]:
    middle = (len(cells) + 1) // 2
    return [cells[:middle], cells[middle:]]


def found_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def provenance(device: torch.device, seconds: float) -> dict:
    """Where numbers come from; stored beside them."""
    return {
        "flowstudy": version("flowstudy"), "torch": torch.__version__, "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "worker": f"{socket.gethostname()}:{os.getpid()}", "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


# --- in a process that serves others ---------------------------------------------------------------------------------

ONE_AT_A_TIME = threading.Lock()  # a worker with several threads: a stack is meant to have the device to itself
worker_load = functools.lru_cache(maxsize=1)(load)
worker_store = functools.lru_cache(maxsize=8)(Store)


def serve_task(task: Task) -> list[Failure]:
    """`run_task` on a worker, which keeps its data set from task to task."""
    if task.flowstudy != version("flowstudy"):
        raise ValueError(f"run: workers must have flowstudy {task.flowstudy}, as the process that calls `run`, got "
                         f"{version('flowstudy')} on {socket.gethostname()}. Install the same version.")
    with ONE_AT_A_TIME:
        return run_task(task, lambda _units: None, worker_store(task.store), worker_load)
