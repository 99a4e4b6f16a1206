"""Dask: a cluster gives the frame of one process, also when workers are lost; one bad cell fails alone there too."""

import os
import signal
import time

import cloudpickle
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from flowstudy.sweep import SweepError, grid, run
from flowstudy.sweep.looks.table import MEASUREMENTS, training_loss
from flowstudy.sweep.workers import dask_engine
from flowstudy.sweep.workers.tasks import Task

distributed = pytest.importorskip("distributed", reason="Dask is not installed: `make test-integrations` installs it")

SMALL = {"width": 5, "train_samples": 20}
PLAN = grid(net=["plain", "highway"], depth=[2, 3], seed=range(4), epochs=2, batch_size=10, **SMALL)
OPTIONS = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
                                  dashboard_address=None) as two:
        yield two


@pytest.fixture
def shipped(monkeypatch):
    """Makes a measurement of this file known to `run`; workers get it by value."""
    import test_dask

    cloudpickle.register_pickle_by_value(test_dask)
    yield lambda measurement: monkeypatch.setitem(MEASUREMENTS, "shipped", measurement)
    cloudpickle.unregister_pickle_by_value(test_dask)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pd.DataFrame:
    """By one process."""
    return run(PLAN, store=tmp_path_factory.mktemp("alone"), **OPTIONS)


@pytest.mark.parametrize("form", ["address", "client", "cluster"])
def test_a_cluster_gives_the_frame_of_one_process(tmp_path, cluster, alone, form):
    """By its address, a client or itself, bit for bit; the user's client and cluster stay open, and a second call
    computes nothing."""
    with distributed.Client(cluster, set_as_default=False) as client:
        engine = {"address": cluster.scheduler_address, "client": client, "cluster": cluster}[form]
        for _ in range(2):
            frame = run(PLAN, store=tmp_path, engine=engine, nets_at_once=2, **OPTIONS)
            assert_frame_equal(frame, alone, check_exact=True)
        assert client.status == "running" and client.submit(sum, (1, 2)).result() == 3
    assert len(list(tmp_path.rglob("*.parquet"))) == 8


def test_a_killed_worker_costs_nothing(tmp_path, cluster, alone, shipped):
    """The first to take a task is killed in the midst of it: the task runs again, and the frame is the same."""
    mark = tmp_path / "killed"

    def killed_once(moment, data):
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return training_loss(moment, data)
        time.sleep(0.5)
        return os.kill(os.getpid(), signal.SIGKILL)

    shipped(killed_once)
    frame = run(PLAN, measure="shipped", store=tmp_path, engine=cluster, nets_at_once=2, **OPTIONS)
    assert mark.exists()
    assert_frame_equal(frame, alone, check_exact=True)


def test_a_bad_cell_fails_alone(tmp_path, cluster, shipped):
    """Its traceback comes from the worker; the others of its group are stored."""
    def bad(moment, data):
        if any(cell.seed == 2 for cell in moment.cells):
            raise ZeroDivisionError("a bad cell")
        return training_loss(moment, data)

    shipped(bad)
    with pytest.raises(SweepError, match=r"4 of 16 cells .* the first with `ZeroDivisionError: a bad cell`") as caught:
        run(PLAN, measure="shipped", store=tmp_path, engine=cluster, **OPTIONS)
    assert sorted(caught.value.rows["seed"].unique()) == [0, 1, 3]
    assert {failure.cell["seed"] for failure in caught.value.failures} == {2}
    assert len(list(tmp_path.glob("failed/*/*.json"))) == 4
    shipped(training_loss)
    run(PLAN, measure="shipped", store=tmp_path, engine=cluster, **OPTIONS)
    assert list(tmp_path.glob("failed/*/*.json")) == []


def test_a_group_that_kills_every_worker_is_given_up(tmp_path, cluster, shipped):
    """Four dead workers, twice: its cells failed.  Groups that waited on a worker when it died are stored."""
    def fatal(moment, data):
        if moment.cells[0].net == "highway" and moment.cells[0].depth == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return training_loss(moment, data)

    shipped(fatal)
    with pytest.raises(SweepError, match=r"4 of 16 cells failed, the first with .*KilledWorker") as caught:
        run(PLAN, measure="shipped", store=tmp_path, engine=cluster, **OPTIONS)
    assert caught.value.rows["cell"].nunique() == 12


def test_a_store_that_is_not_shared_is_an_error(tmp_path, cluster, monkeypatch):
    """Rows that a worker has stored where this process cannot see them are not lost in silence."""
    class Elsewhere(Task):
        """With a folder that is another one on the worker, as a local disk is."""

        def __new__(cls, cells: object, _store: object, *rest: object) -> Task:
            return Task(cells, tmp_path / "elsewhere", *rest)

    monkeypatch.setattr(dask_engine, "SEEN_AFTER", 0.5)
    monkeypatch.setattr("flowstudy.sweep.engine.Task", Elsewhere)
    with pytest.raises(RuntimeError, match=r"`store` must be a folder that the workers share"):
        run(PLAN, store=tmp_path / "here", engine=cluster, **OPTIONS)


def test_another_version_on_a_worker_is_refused(tmp_path, cluster, monkeypatch):
    """Its rows would not be the same numbers."""
    monkeypatch.setattr("flowstudy.sweep.engine.VERSION", "0.0.1")
    with pytest.raises(ValueError, match=r"workers must have flowstudy 0\.0\.1, .* Install the same version"):
        run(PLAN, store=tmp_path, engine=cluster, **OPTIONS)


def test_what_is_no_engine_is_refused(tmp_path):
    for engine in ("dask", "127.0.0.1:8786", 3):
        with pytest.raises(ValueError, match=r"^run: `engine` must be 'local', the address of a Dask scheduler"):
            run(PLAN, store=tmp_path / "none", engine=engine)
    assert not (tmp_path / "none").exists()
