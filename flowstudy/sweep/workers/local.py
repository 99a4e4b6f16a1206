"""Workers on this machine: this process, or one process for each GPU."""

import contextlib
import functools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait

from flowstudy.sweep.store.failures import Failure, failure, remember
from flowstudy.sweep.store.store import Store

from .forecast import forecast
from .side_by_side import beside_each_other, run_side_by_side
from .tasks import Task, halves, load, run_task, serve_task

Done = tuple[Task, list[Failure]]
START_SECONDS = 120  # to import torch on a busy shared disk


def run_here(tasks: Sequence[Task], store: Store, tick: Callable[[Task, float], object],
             say: Callable[[str], object]) -> Iterator[Done]:
    """Run the tasks in this process: one after the other, but trainings on a GPU side by side.

    `tick` is called with each part of a task's work that is done, `say` with the expected time if it is long.
    """
    load_once = functools.lru_cache(maxsize=1)(load)  # groups of one data set follow each other
    side_by_side = beside_each_other(tasks)
    if expected := forecast(tasks, load_once, side_by_side=side_by_side):
        say(expected)
    if side_by_side:
        yield from run_side_by_side(tasks, store, tick, load_once)
        return
    for task in tasks:
        yield task, run_task(task, functools.partial(tick, task), store, load_once)


def run_in_processes(tasks: Sequence[Task], devices: Sequence[str], store: Store) -> Iterator[Done]:
    """Each device has a process, which gets the next task when it has done one.

    A process that dies (killed for its memory, or a crash below Python) is replaced, and its group halved: as with
    exceptions, one cell fails alone.
    """
    waiting = deque(tasks)
    workers = [Worker(device) for device in devices[:len(tasks)]]
    try:
        for worker in workers:
            worker.wait_until_ready()
        while waiting or any(worker.task for worker in workers):
            for worker in workers:
                if waiting and worker.task is None:
                    worker.give(waiting.popleft())
            ended = wait([worker.connection for worker in workers if worker.task is not None])
            for i, worker in [(i, worker) for i, worker in enumerate(workers) if worker.connection in ended]:
                task, answer = worker.take()
                if isinstance(answer, Exception):
                    raise answer
                if answer is None:
                    workers[i] = Worker(worker.device)
                    workers[i].wait_until_ready()
                if answer is None and len(task.cells) > 1:
                    waiting.extendleft(replace(task, cells=tuple(half)) for half in reversed(halves(task.cells)))
                else:
                    yield task, lost(task, worker, store) if answer is None else answer
    finally:
        for worker in workers:
            worker.process.kill()


def lost(task: Task, worker: "Worker", store: Store) -> list[Failure]:
    failed = [failure(task.cells[0], f"the worker process died, exit code {worker.process.exitcode} "
                                     "(-9: killed, often for its memory)")]
    remember(store, task.table, failed)
    return failed


class Worker:
    """A process with a device and at most one task."""

    def __init__(self, device: str):
        spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.device, self.task = device, None
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def wait_until_ready(self) -> None:
        try:
            ready = self.connection.poll(START_SECONDS) and self.connection.recv()
        except EOFError:
            ready = False
        if not ready:
            raise RuntimeError("run: worker processes could not start; they print the reason above. A script that uses "
                               "several GPUs must call run below `if __name__ == \"__main__\":`.")

    def give(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # it died meanwhile: `take` finds out
            self.connection.send(replace(task, device=self.device))

    def take(self) -> tuple[Task, list[Failure] | Exception | None]:
        """The task and its outcome: failures, an exception of the call or the store, or None if the process died."""
        task, self.task = self.task, None
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            answer = None
        return task, answer


def serve(connection: Connection) -> None:
    """The worker process: tasks in, outcomes out, until the other side is gone."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    connection.send(True)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = serve_task(task)
        except Exception as error:
            answer = error
        connection.send(answer)


def end_with_parent() -> None:
    """End this process when its parent ends: a killed run cannot stop its workers, which would go on holding GPUs."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)  # as if killed: every file is whole, the training goes on from its checkpoint
