"""Tasks: one bad cell fails alone, wherever it runs; a group that does not fit is halved; a dead worker is replaced."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from flowstudy.data import load_dataset
from flowstudy.kinds import KINDS
from flowstudy.refusal import RefusalError
from flowstudy.sweep import Cell, Store, StoreError, SweepError, engine, grid, run
from flowstudy.sweep.looks.table import MEASUREMENTS
from flowstudy.sweep.plan_error import PlanError
from flowstudy.sweep.workers import local, memory
from flowstudy.sweep.workers.tasks import Task

SMALL = {"width": 5, "train_samples": 20}
PLAN = grid(net=["plain", "highway"], depth=3, seed=range(6), **SMALL)
BAD = 4  # a seed


def seeds(moment, data):
    """Three rows a cell, known in advance."""
    return pd.DataFrame({"place": [i for i in range(len(moment.cells)) for _ in range(3)],
                         "x": [cell.seed + 0.1 * j for cell in moment.cells for j in range(3)]})


def bad_seed(moment, data):
    if any(cell.seed == BAD for cell in moment.cells):
        raise ZeroDivisionError("a bad\ncell")
    return seeds(moment, data)


def fatal_seed(moment, data):
    """As a crash below Python does, or the system's out-of-memory killer."""
    if any(cell.seed == BAD for cell in moment.cells):
        os.kill(os.getpid(), signal.SIGKILL)
    return seeds(moment, data)


def refused(moment, data):
    raise PlanError("run: `this` must be something else, got that.")


@pytest.fixture
def call(tmp_path, monkeypatch):
    """`run` with a measurement of this file."""
    def small_run(measurement, cells=PLAN, **options):
        monkeypatch.setitem(MEASUREMENTS, "small", measurement)
        return run(cells, **({"measure": "small", "store": tmp_path, "device": "cpu", "progress": False} | options))

    return small_run


@pytest.fixture
def two_workers(monkeypatch):
    """Two processes, as with two GPUs."""
    monkeypatch.setattr(engine, "local_devices", lambda _device: ["cpu", "cpu"])


def failed_files(root) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(root.glob("failed/*/*.json"))]


def check_two_bad_cells(caught, root, call, **options) -> None:
    """The two cells with the bad seed failed, the ten others are stored; a run without the fault does the two."""
    bad = [cell for cell in PLAN if cell.seed == BAD]
    error = caught.value
    assert "\n" not in str(error) and "2 of 12 cells failed" in str(error) and str(root / "failed") in str(error)
    assert sorted(failure.key for failure in error.failures) == sorted(cell.key for cell in bad)
    assert sorted(kept["key"] for kept in failed_files(root)) == sorted(cell.key for cell in bad)
    assert all(Cell(**kept["cell"]) in bad and kept["host"] and kept["when"] for kept in failed_files(root))
    assert error.rows["seed"].tolist() == [cell.seed for cell in PLAN if cell.seed != BAD for _ in range(3)]
    asked = []
    whole = call(lambda moment, data: asked.extend(moment.cells) or seeds(moment, data), **options)
    assert asked == bad
    assert whole["x"].tolist() == [cell.seed + 0.1 * j for cell in PLAN for j in range(3)]
    assert failed_files(root) == []


def test_a_bad_cell_fails_alone(tmp_path, call):
    """Its traceback is kept, the rows of its whole group are stored; a later run tries it again and forgets it."""
    with pytest.raises(SweepError, match=r"the first with `ZeroDivisionError: a bad`") as caught:
        call(bad_seed)
    assert all("in bad_seed" in kept["traceback"] for kept in failed_files(tmp_path))
    check_two_bad_cells(caught, tmp_path, call)


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("bad, reason", [
    ({"width": 200_000}, r"MemoryError: two copies of a net of depth 3 and width 200000 take"),
    ({"depth": 10**8}, r"MemoryError: two copies of a net of depth 100000000 and width 5 take"),
    ({"train_samples": 5000}, r"Dataset.subset: `train` must be 1..1500"),
    ({"net": "residual", "depth": 2, "width": 5, "init": "random_walk", "activation": "sigmoid"}, r".* knows gains"),
], ids=["wide", "deep", "more samples than there are", "a scheme that refuses its net"])
def test_whatever_is_wrong_with_a_net_costs_its_cell_alone(tmp_path, bad, reason, epochs):
    """In the plain measurement, whether it is found out as the data are cut, as room is counted, or as it is built."""
    good = Cell(depth=3, width=5, train_samples=20, epochs=epochs)
    with pytest.raises(SweepError, match="1 of 2 cells failed, the first with .*" + reason) as caught:
        run([replace(good, **bad), good], store=tmp_path, device="cpu", progress=False)
    assert caught.value.rows["cell"].unique().tolist() == [good.key]
    assert [kept["key"] for kept in failed_files(tmp_path)] == [replace(good, **bad).key]


@pytest.mark.parametrize("net", ["plain", "highway", "residual"])
def test_the_size_of_a_net_is_told_without_building_it(monkeypatch, net):
    """Of its weights exactly; what is free decides, and is asked for twice of it and Python's objects."""
    cell, data = Cell(net=net, depth=7, width=9), load_dataset("digits").flat()
    kind = KINDS[net].net(64, 9, 7, 10, "tanh")
    needed = 2 * (sum(p.nbytes for p in kind.parameters()) + 5 * memory.OBJECTS)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: needed)
    memory.check_room(cell, data)
    monkeypatch.setattr(memory, "free_bytes", lambda _device: needed - 1)
    with pytest.raises(MemoryError, match="depth 7 and width 9"):
        memory.check_room(cell, data)


def test_all_cells_bad(call):
    """Nothing is stored, and the error says so."""
    with pytest.raises(SweepError, match="3 of 3 cells failed") as caught:
        call(bad_seed, grid(depth=[2, 3, 4], seed=BAD, **SMALL))
    assert caught.value.rows.empty


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")],
    ids=["cuda", "python", "cpu"])
def test_a_group_that_does_not_fit_is_halved(tmp_path, call, error):
    """Until it fits: nothing counts as failed, and each cell is measured once in a group that fits."""
    sizes = []

    def fits_two(moment, data):
        sizes.append(len(moment.cells))
        if len(moment.cells) > 2:
            raise error
        return seeds(moment, data)

    assert_frame_equal(call(fits_two, store=tmp_path / "halved"), call(seeds, store=tmp_path / "whole"))
    assert sizes == [6, 3, 2, 1, 3, 2, 1] * 2
    assert not (tmp_path / "halved" / "failed").exists()


def test_progress_counts_no_failed_attempt(call, monkeypatch):
    """The bar ends at its total whatever was tried twice."""
    bars = []

    class Bar(engine.NetBar):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(engine, "NetBar", Bar)
    with pytest.raises(SweepError):
        call(bad_seed, [replace(cell, epochs=1) for cell in PLAN], progress=True)  # it fails when the epoch is over
    [bar] = bars
    assert bar.done == pytest.approx(bar.nets) == len(PLAN)
    assert bar.bar.n == pytest.approx(bar.bar.total)


def test_keyboard_interrupt_stops_at_once(tmp_path, call):
    """It is no failure of a cell."""
    def interrupted(moment, data):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted)
    assert failed_files(tmp_path) == []


def test_a_wrong_call_is_no_failure_of_cells(tmp_path, call):
    """What `run` refuses when it sees the data is raised as it is, and nothing is tried in halves."""
    with pytest.raises(ValueError, match=r"^run: `this` must be"):
        call(refused)
    assert failed_files(tmp_path) == []


def test_what_a_measurement_refuses_costs_its_cell_alone(tmp_path, call):
    """One net's refusal is no refusal of the call, whatever its message begins with: the other cells are stored."""
    def refuses_one(moment, data):
        if any(cell.seed == BAD for cell in moment.cells):
            raise RefusalError("run: `model` must be another one.")
        return seeds(moment, data)

    with pytest.raises(SweepError, match=r"the first with `.*RefusalError: run: `model` must be") as caught:
        call(refuses_one)
    check_two_bad_cells(caught, tmp_path, call)


# --- folders that take nothing ---------------------------------------------------------------------------------------


def test_read_only_store(tmp_path, call, monkeypatch):
    """What is stored is returned without a write; a missing cell is refused before anything is computed."""
    whole = call(seeds)

    def refuse(*_arguments, **_options):
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "touch", "replace", "rename", "unlink"):
        monkeypatch.setattr(f"flowstudy.sweep.store.files.Path.{name}", refuse)
    assert_frame_equal(call(seeds), whole)
    with pytest.raises(StoreError, match=r"must be a folder that can be written to, got .*pass another `store`"):
        call(lambda *_: pytest.fail("something was computed"), grid(depth=9, **SMALL))


def test_full_disk_stops_the_run(tmp_path, call, monkeypatch):
    """It is no failure of a cell: one clear error, what is stored stays, and a later run goes on."""
    monkeypatch.setattr("flowstudy.sweep.store.files.NO_SPACE", (28,))
    written = []

    def full_at_second(file):
        written.append(file)
        if len(written) > 4:  # the plan, the first group, and the folder of each
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowstudy.sweep.store.files.os.fsync", full_at_second)
    with pytest.raises(StoreError, match=r"must have space .* free some space and run again"):
        call(seeds)
    assert Store(tmp_path).missing(PLAN, next(tmp_path.glob("small-*")).name) == PLAN[6:]
    assert failed_files(tmp_path) == []
    monkeypatch.undo()
    assert len(call(seeds)) == 12 * 3


# --- a process for each device ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("two_workers")
def test_processes_give_the_same_frame(tmp_path, call):
    """Two processes train and measure what one does, bit for bit, and both have had their share."""
    plan = grid(net=["plain", "highway"], depth=[2, 3], seed=range(2), epochs=2, batch_size=10, **SMALL)
    both = run(plan, store=tmp_path / "two", device="cpu", progress=False)
    workers = {one["worker"] for path in (tmp_path / "two").glob("training_loss-*")
               for one in Store(tmp_path / "two").provenance(path.name)}
    assert 1 <= len(workers) <= 2 and not any(worker.endswith(f":{os.getpid()}") for worker in workers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "local_devices", lambda device: [device])
        assert_frame_equal(run(plan, store=tmp_path / "one", device="cpu", progress=False), both, check_exact=True)


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_one_of_two_cells_kills_its_process(call):
    """The other's rows are there, and the error says how the process died."""
    with pytest.raises(SweepError, match=r"1 of 2 cells failed.*worker process died, exit code -9") as caught:
        call(fatal_seed, grid(net="plain", depth=3, seed=[BAD, BAD + 1], **SMALL))
    assert caught.value.rows["seed"].tolist() == [BAD + 1] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_a_cell_that_kills_its_process_fails_alone(tmp_path, call, monkeypatch):
    """The process is replaced, its group halved, and the record says how it died."""
    with pytest.raises(SweepError, match=r"worker process died, exit code -9") as caught:
        call(fatal_seed)
    monkeypatch.setattr(engine, "local_devices", lambda device: [device])
    check_two_bad_cells(caught, tmp_path, call)


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_a_refusal_comes_through_from_a_process(call):
    with pytest.raises(ValueError, match=r"^run: `this` must be"):
        call(refused)


PARENT = textwrap.dedent("""
    import sys
    sys.path.insert(0, sys.argv[1])
    if __name__ == "__main__":
        from test_tasks import PLAN, Store, Task, local, slow_seeds
        from flowstudy.version import VERSION
        store = Store(sys.argv[2])
        store.prepare("table")
        tasks = [Task(tuple(part), store.root, (("table", slow_seeds, {}),), "auto", VERSION)
                 for part in (PLAN[:6], PLAN[6:])]
        for done in local.run_in_processes(tasks, ["cpu", "cpu"], store):
            pass
""")


def slow_seeds(moment, data):
    (Path(os.environ["STARTED"]) / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """They are in the middle of a group, with nobody to tell: within seconds they are no more."""
    started, script = tmp_path / "started", tmp_path / "script.py"
    started.mkdir()
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, "-W", "ignore", script, str(Path(__file__).parent), tmp_path / "store"],
                              env=os.environ | {"STARTED": str(started), "PYTHONPATH": os.pathsep.join(sys.path)})
    wait_until(lambda: len(list(started.iterdir())) == 2, 120)
    workers = [int(path.name) for path in started.iterdir()]
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(runs, workers)), 20)


def wait_until(come: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def runs(process: int) -> bool:
    """Nobody may be there to collect a process that has ended: it is then a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_worker_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    """And not a failure of every cell: scripts without a main guard end here."""
    monkeypatch.setattr(local, "serve", time.sleep)  # which a connection is no argument of: the process dies
    task = Task((Cell(),), tmp_path, (("table", seeds, {}),), "auto", "0.1.0")
    with pytest.raises(RuntimeError, match=r"worker processes could not start.*__main__"):
        next(local.run_in_processes([task], ["cpu"], Store(tmp_path)))
