"""Optuna asks and is told: every trial's value is its cell's own, a group at a time, diverged nets as failed."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from flowstudy.sweep import Cell, grid, run
from flowstudy.sweep.looks.table import MEASUREMENTS, training_loss

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: `make test-integrations` installs it")

from flowstudy.sweep.optuna_search import WORKER, optuna_search  # noqa: E402

SETTINGS = {"net": "plain", "activation": "linear", "depth": 3, "width": 5, "train_samples": 20, "batch_size": 10,
            "epochs": 2}
STATE = optuna.trial.TrialState
OPTIONS = {"device": "cpu", "progress": False}


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))


def space(trial) -> dict:
    return SETTINGS | {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e6, log=True),
                       "momentum": trial.suggest_categorical("momentum", [0.0, 0.9])}


def test_each_trial_is_told_its_own_nets_loss(tmp_path, study):
    """The value is the final loss of the cell that the trial's parameters describe; a diverged net failed."""
    optuna_search(study, space, trials=12, group=5, store=tmp_path / "search", **OPTIONS)
    assert len(study.trials) == 12
    cells = [Cell(**SETTINGS, **trial.params) for trial in study.trials]
    frame = run(cells, store=tmp_path / "again", **OPTIONS)
    final = frame[frame["epoch"] == 2].set_index("cell")["loss"]
    for trial, cell in zip(study.trials, cells, strict=True):
        diverged = final[cell.key] != final[cell.key]
        assert trial.state == (STATE.FAIL if diverged else STATE.COMPLETE)
        assert diverged or trial.value == final[cell.key]
    assert {trial.state for trial in study.trials} == {STATE.FAIL, STATE.COMPLETE}
    assert study.best_value == final.min()


def test_a_group_is_one_stack(tmp_path, study, monkeypatch):
    """Trials of one structure are trained together, in groups of the asked size, the last one smaller."""
    sizes = []
    monkeypatch.setitem(MEASUREMENTS, "training_loss",
                        lambda moment, data: sizes.append(len(moment.cells)) or training_loss(moment, data))
    optuna_search(study, space, trials=12, group=5, store=tmp_path, **OPTIONS)
    assert sizes == [5, 5, 2]


def test_equal_trials_and_failed_cells(tmp_path, study, monkeypatch):
    """Trials that ask for one and the same net are all told its value; a cell that raises is told as failed."""
    def seven_fails(moment, data):
        if any(cell.seed == 7 for cell in moment.cells):
            raise ZeroDivisionError
        return training_loss(moment, data)

    monkeypatch.setitem(MEASUREMENTS, "training_loss", seven_fails)
    optuna_search(study, lambda trial: SETTINGS | {"seed": trial.suggest_categorical("seed", [7, 8])}, trials=8,
                  group=8, store=tmp_path, **OPTIONS)
    told = {(trial.params["seed"], trial.state, trial.value) for trial in study.trials}
    value = run(grid(**SETTINGS, seed=8), store=tmp_path, **OPTIONS)["loss"].iloc[-1]
    assert told == {(7, STATE.FAIL, None), (8, STATE.COMPLETE, value)}


def test_trials_of_processes_that_are_no_more_are_failed(tmp_path, study):
    """Those of living processes, of other machines, and of other programs stay as they are."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    asked = [study.ask() for _ in range(4)]
    for trial, worker in zip(asked, ([here, gone.pid], [here, os.getppid()], [f"not-{here}", gone.pid]), strict=False):
        trial.set_user_attr(WORKER, worker)
    optuna_search(study, space, trials=2, group=2, store=tmp_path, **OPTIONS)
    assert [trial.state for trial in study.trials[:4]] == [STATE.FAIL] + [STATE.RUNNING] * 3
    assert all(trial.state.is_finished() for trial in study.trials[4:])


KILLED = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, sys.argv[2])
    from test_optuna import OPTIONS, optuna, optuna_search, space
    def killed(trial):
        if trial.number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return space(trial)
    study = optuna.create_study(storage=sys.argv[1], study_name="one")
    optuna_search(study, killed, trials=6, group=3, store=sys.argv[1].removeprefix("sqlite:///") + ".store", **OPTIONS)
""")


@pytest.mark.slow
def test_a_search_that_was_killed_leaves_no_trial_running(tmp_path):
    """A process that is killed between asking and telling: the next search tells its group as failed, and goes on."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, storage, str(Path(__file__).parent)],
                          timeout=600)
    assert done.returncode == -signal.SIGKILL
    study = optuna.load_study(storage=storage, study_name="one")
    assert [trial.state for trial in study.trials[3:]] == [STATE.RUNNING] * 3
    optuna_search(study, space, trials=3, group=3, store=tmp_path / "store", **OPTIONS)
    assert [trial.state for trial in study.trials[3:6]] == [STATE.FAIL] * 3
    assert all(trial.state.is_finished() for trial in study.trials)
