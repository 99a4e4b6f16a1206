"""A task is one group of same-structure cells: measured as one stack, stored as one file, safe to run again."""

import contextlib
import functools
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from flowstudy.cuda_capture import CAPTURES
from flowstudy.data import Dataset, load_dataset
from flowstudy.sweep.cells import Cell, digest
from flowstudy.sweep.looks.in_training import measure_together
from flowstudy.sweep.looks.table import Look
from flowstudy.sweep.plan_error import PlanError
from flowstudy.sweep.store.failures import Failure, failure, forget, remember
from flowstudy.sweep.store.files import StoreError, files_in, read_from_store
from flowstudy.sweep.store.store import Store
from flowstudy.train import Checkpoint
from flowstudy.version import VERSION
from flowstudy.whole_file import sweep_leftovers

from .code import code_digest
from .memory import check_room, nets_that_fit

CHECKPOINT = 2  # version of checkpoint files; raise it when training cannot go on from older ones, which are ignored
Load = Callable[[str, int | None, torch.device], Dataset]


@dataclass(frozen=True)
class Task:
    """All that a process needs to compute one group; it travels to workers pickled.

    Attributes:
        cells: of one structure.
        store: the folder, an absolute path that every worker sees.
        measurements: a table of the store, a look of `MEASUREMENTS` and its options each: all of one training.
        device: "auto" or torch's name of it, where the task runs.
        flowstudy: version that planned it; a worker of another version refuses.
        checkpoint_every: seconds of training between two checkpoints.
        mark: of the store, which a worker writes to while it is there; None: whatever lies there.
        at_once: tasks that share the device's memory.
    """

    cells: tuple[Cell, ...]
    store: Path
    measurements: tuple[tuple[str, Look, dict], ...]
    device: str
    flowstudy: str
    checkpoint_every: float = 60.0
    mark: str | None = None
    at_once: int = 1

    @property
    def key(self) -> str:
        """A hash of the cells and the tables, by which equal tasks have equal names."""
        return digest([*self.tables, *(cell.key for cell in self.cells)])

    @property
    def tables(self) -> list[str]:
        return [table for table, *_ in self.measurements]

    @property
    def table(self) -> str:
        """The table whose name is used for the files of failures and checkpoints."""
        return self.tables[0]

    @property
    def trains(self) -> bool:
        return self.cells[0].epochs > 0

    @property
    def work(self) -> int:
        return sum(map(work, self.cells))


def work(cell: Cell) -> int:
    """Units of the progress bar: net-epochs, or 1 for a net that is measured as it starts."""
    return max(cell.epochs, 1)


def load(name: str, train_samples: int | None, device: torch.device) -> Dataset:
    data = load_dataset(name).flat().to(device)
    return data if train_samples is None else data.subset(train_samples)


def run_task(task: Task, tick: Callable[[float], object], store: Store, load: Load) -> list[Failure]:
    """Compute and store the task's cells; return those that failed alone.

    A group that raises is halved, down to single cells: one bad cell costs its neighbours a second run, not their
    rows.  So is a group that does not fit into memory.  Where the data set cannot be had, or not one of the nets has
    room, all of the group's cells have failed.

    Raises:
        PlanError, StoreError: the call or the store is at fault, so that a smaller group would fail as well.
    """
    device = torch.device(found_device(task.device))
    try:
        data = load(task.cells[0].dataset, task.cells[0].train_samples, device)
        waiting = pieces(task, data)
    except (PlanError, StoreError):
        raise
    except Exception as error:
        return given_up(task, error, tick, store)
    failures: list[Failure] = []
    while waiting:
        cells = waiting.pop(0)
        store.check_held()
        if all(store.holds(cells, table) for table in task.tables):
            # these cells were stored meanwhile by another process, or by this task before its worker was lost
            tick(sum(map(work, cells)))
            continue
        error = attempt(task, cells, data, tick, store, device)
        if error is not None and len(cells) > 1:
            waiting[:0] = halves(cells)
        elif error is not None:
            failures.append(error)
            remember(store, task.table, [error])
            tick(work(cells[0]))
    return failures


def attempt(task: Task, cells: Sequence[Cell], data: Dataset, tick: Callable[[float], object], store: Store,
            device: torch.device) -> Failure | None:
    """Measure and store the cells; an error comes back as text, since a traceback would keep the stack in memory."""
    started, ticked = time.perf_counter(), 0.0

    def count(units: float | int) -> None:
        nonlocal ticked
        ticked += units
        tick(units)

    checkpoint = checkpoint_of(task, cells, store)
    try:
        rows, backend = measure_together(task.measurements, cells, data, count, checkpoint)
    except (PlanError, StoreError):  # an error of the call or the store, not of a cell: halving the group cannot help
        raise
    except Exception as error:
        if checkpoint:
            checkpoint.remove()
        tick(-ticked)
        failed = failure(cells[0], error)
    else:
        count(sum(map(work, cells)) - ticked)
        for table, part in rows.items():
            store.append(table, cells, part, provenance(device, time.perf_counter() - started, backend))
        forget(task.store, task.table, cells)
        if checkpoint:
            checkpoint.remove()
        return None
    if device.type == "cuda":
        with CAPTURES:  # torch frees nothing while another thread captures
            torch.cuda.empty_cache()
    return failed


def given_up(task: Task, error: Exception, tick: Callable[[float], object], store: Store) -> list[Failure]:
    """All of the task's cells have failed, for one reason."""
    failures = [failure(cell, error) for cell in task.cells]
    remember(store, task.table, failures)
    tick(task.work)
    return failures


def pieces(task: Task, data: Dataset) -> list[Sequence[Cell]]:
    """The task's cells in parts that fit into the memory of where it runs."""
    check_room(task.cells[0], data)
    size = len(task.cells)
    if task.trains:
        with contextlib.suppress(Exception):  # whatever is wrong with one of them, it fails alone
            size = max(1, nets_that_fit(task.cells, data) // task.at_once)
    return [task.cells[i:i + size] for i in range(0, len(task.cells), size)]


def checkpoint_of(task: Task, cells: Sequence[Cell], store: Store) -> Checkpoint | None:
    """The checkpoint from which a killed training goes on; None for cells that are not trained."""
    if not cells[0].epochs:
        return None
    name = digest([CHECKPOINT, replace(task, cells=tuple(cells)).key])
    return Checkpoint(checkpoint_folder(task.store, task.table) / f"{name}.pt", task.checkpoint_every,
                      [cell.key for cell in cells], store.write, read_from_store)


def checkpoint_folder(root: Path, table: str) -> Path:
    return root / "checkpoints" / table


def sweep_checkpoints(store: Store, tables: Sequence[str]) -> None:
    """Remove the checkpoints of groups whose cells are all stored in all these tables.

    Such files are left where the cells were computed in other groups, or the process was killed just after storing.
    """
    folder = checkpoint_folder(store.root, tables[0])
    sweep_leftovers(folder)
    paths = {path.with_name(path.name.removesuffix(".before"))
             for ending in (".pt", ".pt.before") for path in files_in(folder, ending)}
    stored = [store.stored(table) for table in tables] if paths else []
    for path in paths:
        keys = Checkpoint.key_of(path, read_from_store)
        if keys is not None and all(key in one for key in keys for one in stored):
            Checkpoint(path).remove()


def halves(cells: Sequence[Cell]) -> list[Sequence[Cell]]:
    middle = (len(cells) + 1) // 2
    return [cells[:middle], cells[middle:]]


def found_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def provenance(device: torch.device, seconds: float, backend: str) -> dict:
    """Versions, device, worker, backend, time and seconds of a computation, which are stored beside its rows."""
    return {
        "flowstudy": VERSION, "code": code_digest(), "torch": torch.__version__, "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "backend": backend, "worker": f"{socket.gethostname()}:{os.getpid()}", "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


# --- in a process that serves others ---------------------------------------------------------------------------------

ONE_AT_A_TIME = threading.Lock()  # a worker with several threads: a stack is meant to have the device to itself
worker_load = functools.lru_cache(maxsize=1)(load)


@functools.lru_cache(maxsize=8)
def worker_store(root: Path, mark: str | None) -> Store:
    """The store of the process that sent the task, under the same path here."""
    store = Store(root)
    if mark is None:
        return store
    if not files_in(root, mark):
        raise RuntimeError("run: `store` must be a folder that the workers share with the process that calls `run`, "
                           f"got {root}, which is not there on {socket.gethostname()}, or is another folder. Pass "
                           "one on a shared disk.")
    store.hold(mark)
    return store


def serve_task(task: Task) -> list[Failure]:
    """`run_task` on a worker, which keeps its data set from task to task."""
    if task.flowstudy != VERSION:
        raise PlanError(f"run: workers must have flowstudy {task.flowstudy}, as the process that calls `run`, got "
                        f"{VERSION} on {socket.gethostname()}. Install the same version.")
    with ONE_AT_A_TIME:
        return run_task(task, lambda _units: None, worker_store(task.store, task.mark), worker_load)
