"""Optuna chooses, a stack learns: trials are asked a group at a time, trained together, and told (extra: optuna).

>>> import optuna
>>> def space(trial):
...     return {"net": "plain", "depth": 20, "epochs": 5, "width": 20,
...             "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)}
>>> study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
>>> optuna_search(study, space, trials=40, group=20, store="results")  # doctest: +SKIP
"""

import os
import socket
from collections.abc import Callable

import numpy as np
import optuna
from optuna.trial import TrialState

from flowstudy.sweep.store.failures import SweepError
from flowstudy.whole_file import process_lives

from .cells import Cell
from .engine import run
from .ranking import last_rows

WORKER = "flowstudy worker"  # of a trial: the machine and the process that asked for it


def optuna_search(study: optuna.Study, space: Callable[[optuna.Trial], dict], *, trials: int, group: int = 20,
                  of: str = "loss", **options: object) -> None:
    """Add `trials` trials to the study, `group` at a time: so many are asked before the first of them is told.

    Args:
        space: a trial to the fields of its `Cell`; cells that agree in all but init, seed, learning rate, momentum,
            decay and gate bias are trained as one stack.
        group: of nets trained together.  The sampler learns between groups, not within one.
        of: the column of `run`'s frame whose last value a trial is told; a net that diverged or failed is told as
            failed.
        options: of `run`: `measure`, `store`, `device`, ....

    Trials that a process of this machine asked for, which was killed before it told them, are told as failed first.
    """
    fail_abandoned(study)
    for start in range(0, trials, group):
        asked = [ask(study) for _ in range(min(group, trials - start))]
        cells = [Cell(**space(trial)) for trial in asked]
        try:
            rows = run(cells, nets_at_once=group, **options)
        except SweepError as error:
            rows = error.rows
        values = {} if rows.empty else last_rows(rows, of).set_index("cell")[of].to_dict()
        for trial, cell in zip(asked, cells, strict=True):
            value = values.get(cell.key, np.nan)
            if np.isfinite(value):
                study.tell(trial, float(value))
            else:
                study.tell(trial, state=TrialState.FAIL)


def ask(study: optuna.Study) -> optuna.Trial:
    trial = study.ask()
    trial.set_user_attr(WORKER, [socket.gethostname(), os.getpid()])
    return trial


def fail_abandoned(study: optuna.Study) -> None:
    """Tell Optuna that trials of processes that have ended are failed, since they would count as running for ever."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, process = trial.user_attrs.get(WORKER, (None, 0))
        if host == socket.gethostname() and not process_lives(process):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
