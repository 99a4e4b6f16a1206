"""Studies beside each other: every job once, as many at a time as asked, one thread for each kernel."""

import os
import subprocess
import sys
import threading

import pytest

from flowstudy.figures.beside import ONE_THREAD, beside


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_every_job_is_done_once_and_as_many_at_once_as_asked(at_once):
    """The first `at_once` jobs wait for each other: fewer at once would never end, more would break the barrier."""
    barrier, running, most, lock = threading.Barrier(at_once, timeout=60), [], [], threading.Lock()

    def work(job: int) -> str:
        with lock:
            running.append(job)
            most.append(len(running))
        if job < at_once:
            barrier.wait()
        with lock:
            running.remove(job)
        return threading.current_thread().name

    assert sorted(beside(range(7), work, at_once)) == [(job, str(job)) for job in range(7)]
    assert max(most) == at_once


@pytest.mark.parametrize("at_once, threads", [(1, None), (2, "1")])
def test_processes_started_beside_each_other_have_one_thread(at_once, threads, monkeypatch):
    """Only then, only where the user has said nothing, and nothing is left of it afterwards."""
    for name in ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(ONE_THREAD[1], "7")

    def seen(_job: int) -> list[str]:
        code = f"import os; print(*(os.environ.get(name) for name in {ONE_THREAD!r}))"
        return subprocess.check_output([sys.executable, "-c", code], text=True).split()

    assert [told for _, told in beside([0, 1], seen, at_once)] == [[str(threads), "7", str(threads)]] * 2
    assert [os.environ.get(name) for name in ONE_THREAD] == [None, "7", None]


def test_an_error_is_raised_where_the_results_are_read():
    with pytest.raises(ZeroDivisionError):
        list(beside([1, 0], lambda job: 1 / job, 2))


def test_an_interrupt_ends_the_process_while_jobs_still_run():
    """Nobody waits for the threads: a job that would take an hour does not hold the process up."""
    code = ("import time; from flowstudy.figures.beside import beside\n"
            "for job, _ in beside([0, 3600], time.sleep, 2): raise KeyboardInterrupt")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "KeyboardInterrupt" in done.stderr
