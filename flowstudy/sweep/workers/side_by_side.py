"""Several groups at once on one GPU: the steps of one fill what those of another leave idle."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import torch

from flowstudy.data import Dataset
from flowstudy.kinds import KINDS
from flowstudy.sweep.looks.in_training import OF_TRAINING
from flowstudy.sweep.store.failures import Failure
from flowstudy.sweep.store.store import Store
from flowstudy.train.stacks.fully_connected import trains_by_hand

from .tasks import Load, Task, found_device, run_task

AT_ONCE = 8  # figure 1's eight stacks of 100 nets: .72 of the time; two of them .77 to .80 (benchmarks/results/gpu.md)


class GivenUpError(BaseException):
    """The call has ended early.  Not an Exception: it is no failure of a cell, which a smaller group might not have."""


def beside_each_other(tasks: Sequence[Task]) -> bool:
    """Whether these are several tasks that train on a GPU, and share nothing that the process has once: modules of
    users may draw random numbers, which torch forbids while another thread captures a graph, and other products than
    float32's are a switch of the process, which measurements in training turn back."""
    if len(tasks) < 2 or not found_device(tasks[0].device).startswith("cuda"):
        return False
    return all(task.trains and of_training(task)["precision"] == "float32" for task in tasks) and all(
        of_the_library(net) for net in {task.cells[0].net for task in tasks})


def of_training(task: Task) -> dict[str, object]:
    return OF_TRAINING | task.measurements[0][2]


def of_the_library(net: str) -> bool:
    """Whether this kind's nets are computed by hand-written layers."""
    try:
        return trains_by_hand(KINDS[net].net(2, 2, 2, 2, "tanh"))
    except Exception:  # one that cannot be built so fails alone, when its turn comes
        return False


def run_side_by_side(tasks: Sequence[Task], store: Store, tick: Callable[[Task, float], object],
                     load: Load) -> Iterator[tuple[Task, list[Failure]]]:
    """Run the tasks on one GPU, `AT_ONCE` at a time, each in a thread and on a stream of its own; as they end.

    Cells for which there was no memory beside the others are tried again when these are done.
    """
    device, together = torch.device(found_device(tasks[0].device)), min(AT_ONCE, len(tasks))
    ended, one = threading.Event(), threading.Lock()

    def advance(task: Task, units: float | int) -> None:
        if ended.is_set():
            raise GivenUpError
        with one:
            tick(task, units)

    def load_once(name: str, train_samples: int | None, where: torch.device) -> Dataset:
        with one:
            data = load(name, train_samples, where)
            torch.cuda.current_stream(device).synchronize()  # another stream may read it next
        return data

    def work(task: Task) -> tuple[Task, list[Failure]]:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            return task, run_task(replace(task, at_once=together), functools.partial(advance, task), store, load_once)

    waiting, short = [], []
    with ThreadPoolExecutor(together) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
            for done in as_completed(waiting):
                task, failures = done.result()
                if any(map(lacked_memory, failures)):
                    short.append((task, failures))
                else:
                    yield task, failures
        finally:  # an error in one of them, or in the caller, ends the others at their next tick
            ended.set()
            for one_of_them in waiting:
                one_of_them.cancel()
    for task, failures in short:
        yield task, tried_again(task, failures, store, load)


def tried_again(task: Task, failures: list[Failure], store: Store, load: Load) -> list[Failure]:
    """The failures that stay when cells that lacked memory have the device to themselves."""
    keys = {failure.key for failure in failures if lacked_memory(failure)}
    again = replace(task, cells=tuple(cell for cell in task.cells if cell.key in keys))
    others = [failure for failure in failures if failure.key not in keys]
    return others + run_task(again, lambda _units: None, store, load)  # their parts of the progress bar are counted


def lacked_memory(failure: Failure) -> bool:
    return "MemoryError" in failure.traceback  # Python's and torch's
