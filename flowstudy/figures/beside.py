"""Studies beside each other: a kernel for each core, with one thread of torch's.

Most of a study is small matrices, which two threads hardly speed up, and beside a busy core two threads wait for each
other: ten times as long.  Kernels with one thread each share the cores as any processes do.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read by a kernel as it starts
Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def beside(jobs: Sequence[Job], work: Callable[[Job], Result], at_once: int) -> Iterator[tuple[Job, Result]]:
    """Do `work` for each job, `at_once` at a time, in threads named after their jobs; yield results as they come.

    Threads are enough, because a job only waits for its kernel.  They are daemons, so that an interrupt ends this
    process at once; its kernels, which check for their parent every second, end after it.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Job, Result | None, BaseException | None]] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def serve() -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            threading.current_thread().name = str(job)
            try:
                done.put((job, work(job), None))
            except BaseException as error:
                done.put((job, None, error))

    with one_thread_each(at_once):
        for _ in range(min(at_once, len(jobs))):
            threading.Thread(target=serve, daemon=True).start()
        for _ in jobs:
            job, result, error = done.get()
            if error is not None:
                raise error
            yield job, result


@contextmanager
def one_thread_each(at_once: int) -> Iterator[None]:
    """Set one thread per kernel in this process's environment, which kernels inherit; the user's own settings stay."""
    set_here = [name for name in ONE_THREAD if at_once > 1 and name not in os.environ]
    os.environ.update(dict.fromkeys(set_here, "1"))
    try:
        yield
    finally:
        for name in set_here:
            del os.environ[name]
