"""Run a plan: skip what is stored, group, train and measure wherever there are workers, append."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import pandas as pd
import torch

from flowstudy.arguments import a_whole, check_path, check_real, optional
from flowstudy.data.datasets import fetch_dataset
from flowstudy.names import MeasureName
from flowstudy.progress import NetBar
from flowstudy.refusal import RefusalError
from flowstudy.sweep.looks.table import MEASUREMENTS
from flowstudy.sweep.store.failures import Failure, failure, raise_for, remember
from flowstudy.sweep.store.plans import remember_plan
from flowstudy.sweep.store.store import Store
from flowstudy.sweep.workers.dask_engine import check_engine, run_on_dask
from flowstudy.sweep.workers.local import Done, run_here, run_in_processes
from flowstudy.sweep.workers.tasks import VERSION, Task, sweep_checkpoints, work
from flowstudy.torch_arguments import check_device_or_auto

from .cells import Cell
from .plan import Shard, check_measures, check_plan, check_shard, cost, groups, shard_of, table_of

NETS_AT_ONCE = {"as they start": 20, "trained here": 200, "trained by workers": 50}


@overload
def run(cells: Sequence[Cell], *, measure: MeasureName = "training_loss", store: str | os.PathLike[str] = "results",
        device: str = "auto", progress: bool = True, nets_at_once: int | None = None, engine: object = "local",
        shard: Shard = None, checkpoint_every: float = 60.0, insecure_network: bool = False,
        **options: object) -> pd.DataFrame: ...


@overload
def run(cells: Sequence[Cell], *, measure: list[MeasureName] | tuple[MeasureName, ...],
        store: str | os.PathLike[str] = "results", device: str = "auto", progress: bool = True,
        nets_at_once: int | None = None, engine: object = "local", shard: Shard = None,
        checkpoint_every: float = 60.0, insecure_network: bool = False,
        **options: object) -> dict[str, pd.DataFrame]: ...


def run(cells: Sequence[Cell], *, measure: MeasureName | Sequence[MeasureName] = "training_loss",
        store: str | os.PathLike[str] = "results", device: str = "auto", progress: bool = True,
        nets_at_once: int | None = None, engine: object = "local", shard: Shard = None,
        checkpoint_every: float = 60.0, insecure_network: bool = False,
        **options: object) -> pd.DataFrame | dict[str, pd.DataFrame]:
    """Train and measure every cell that the store does not hold yet, then return the rows of all of them.

    Safe to kill at any moment: a later call goes on where this one stopped, and computes nothing twice.  A cell that
    fails does so alone: its traceback is kept in the store, and the rows of all others are.

    Args:
        cells: the plan, from `grid` and `random_search`.
        measure: "training_loss" (a row per epoch), "accuracy", "gradient_flow" (per layer), "jacobian_spectrum" (per
            singular value); all but the first are measured after the cell's epochs, so at initialisation where epochs
            is 0.  A list measures all of them in one training, and a dict of their frames comes back.
        store: folder of the results.
        device: "auto" is the GPU where there is one, else the CPU; or any name that torch knows.
        progress: show a progress bar of nets with the time left; what takes long says so before it starts.
        nets_at_once: the largest number of nets trained as one stack; None is 200 (50 where workers share them out, 20
            that are not trained).  Fewer where memory is short: one net's tensors are counted first, and a stack that
            does not fit all the same is halved.
        engine: "local" is this process; with several GPUs one worker process for each (a script then needs the usual
            `if __name__ == "__main__":`).  Or workers elsewhere: the address of a Dask scheduler
            ("tcp://127.0.0.1:8786"), a `distributed.Client`, or a cluster such as `dask_jobqueue.SLURMCluster`; they
            see `store` under the same path, and `device` is theirs.
        shard: "i/N" runs part i of N, and returns that part's rows: N processes that know nothing of each other, such
            as a Slurm array, share a plan and a store.
        checkpoint_every: seconds of training between two checkpoints, where a killed run goes on, to the same numbers.
        insecure_network: admit an `engine` "tcp://..." of another machine.  Whoever reaches such a scheduler runs code
            on it, so without this only loopback and "tls://..." are taken; a client or cluster object is your word.
        options: what the measurement takes: `samples`, and for spectra `part`.  For nets in training also `at`, a
            `RecordAt`: measured at those epochs and updates, with columns `epoch` and `step`; without it once, after
            the last epoch.  And `precision`, "tf32" for CUDA's faster products.

    Returns:
        A tidy frame: the cell's key `cell`, what was measured, every field of the cell; in the order of the plan.

    Raises:
        ValueError, TypeError: what was asked for cannot be used, or not one of the data sets be had; nothing is
            computed.
        StoreError: the store's folder is full, cannot be written to or read, or was moved in the meantime; what it
            holds is as it was.
        SweepError: some cells failed; its `failures` say how, its `rows` are those of all others.
    """
    cells = check_plan(cells)
    wanted = {name: (table_of(name, own), own) for name, own in check_measures(measure, options, cells).items()}
    check_engine(engine, insecure_network)
    check_path("run", "store", store)
    optional(a_whole(1))("run", "nets_at_once", nets_at_once)
    check_real("run", "checkpoint_every", checkpoint_every, "at least 0")
    mine = cells if shard is None else shard_of(cells, *check_shard(shard))
    if engine == "local":
        check_device_or_auto("run", "device", device)
    results, tables = Store(store), [table for table, _ in wanted.values()]
    missing = {cell for table in tables for cell in results.missing(mine, table)}
    failures: list[Failure] = []
    if missing:
        absent = fetch_datasets([cell for cell in mine if cell in missing], engine)
        for name, (table, own) in wanted.items():
            results.prepare(table)
            remember_plan(results, name, own, table, cells)
        failures += without_data(results, tables[0], missing, absent)
        missing -= {cell for cell in missing if cell.dataset in absent}
        measurements = tuple((table, MEASUREMENTS[name], own) for name, (table, own) in wanted.items())
        size, mark = nets_at_once or default_size(cells, engine), results.hold()
        parts = [tuple(cell for cell in group if cell in missing) for group in groups(mine, size)]
        todo = [Task(part, Path(store).absolute(), measurements, device, VERSION, checkpoint_every, mark)
                for part in parts if part]
        with NetBar(", ".join(wanted), len(missing), sum(map(cost_of, todo)), progress) as bar:
            for _task, failed in execute(todo, engine, results, bar):
                failures += failed
        results.check_held()
    sweep_checkpoints(results, tables)
    failed = {failure.key for failure in failures}
    rows = {name: results.load([cell for cell in mine if cell.key not in failed], table)
            for name, (table, _) in wanted.items()}
    answer = rows[measure] if isinstance(measure, str) else rows
    raise_for(failures, len(set(mine)), results.root, tables[0], answer)
    return answer


def fetch_datasets(cells: Sequence[Cell], engine: object) -> dict[str, Exception]:
    """The errors of data sets that could not be loaded, by name; raised if no data set of the plan can be."""
    if engine != "local":  # workers elsewhere have files of their own
        return {}
    wanted, absent = list(dict.fromkeys(cell.dataset for cell in cells)), {}
    for dataset in wanted:
        try:
            fetch_dataset(dataset)
        except (RefusalError, OSError) as error:
            absent[dataset] = error
    if len(absent) == len(wanted):
        raise absent[wanted[0]]
    return absent


def without_data(store: Store, table: str, cells: set[Cell], absent: dict[str, Exception]) -> list[Failure]:
    """The failures of cells whose data sets are absent, kept in the store."""
    failures = [failure(cell, absent[cell.dataset]) for cell in cells if cell.dataset in absent]
    remember(store, table, failures)
    return failures


def default_size(cells: Sequence[Cell], engine: object) -> int:
    if not any(cell.epochs for cell in cells):
        return NETS_AT_ONCE["as they start"]
    return NETS_AT_ONCE["trained here" if engine == "local" else "trained by workers"]


def execute(tasks: Sequence[Task], engine: object, store: Store, bar: NetBar) -> Iterator[Done]:
    """Each task with the failures in it, as they end."""
    def tick(task: Task, units: float | int) -> None:
        bar.advance(units / work(task.cells[0]), units * task.cells[0].depth)

    if engine != "local":
        yield from counted(run_on_dask(tasks, engine, store), tick)
    elif len(devices := local_devices(tasks[0].device)) > 1:
        yield from counted(run_in_processes(tasks, devices, store), tick)
    else:
        yield from run_here(tasks, store, tick, lambda words: bar.say(f"{bar.nets} nets: {words}"))


def cost_of(task: Task) -> float:
    return float(sum(map(cost, task.cells)))


def counted(done: Iterator[Done], tick: Callable[[Task, float], object]) -> Iterator[Done]:
    """Advance the progress bar by whole tasks as they end, for workers that do not report parts of a task."""
    for task, failed in done:
        tick(task, task.work)
        yield task, failed


def local_devices(device: str) -> list[str]:
    several = device in ("auto", "cuda") and torch.cuda.device_count() > 1
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if several else [device]
