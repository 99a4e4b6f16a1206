"""Optuna chooses, a stack learns: trials are asked a group at a time, trained together, and told (extra: optuna).

>>> import optuna
>>> def space(trial):
...     return {"net": "plain", "depth": 20, "epochs": 5, "width": 20,
...             "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)}
>>> study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
>>> optuna_search(study, space, trials=40, group=20, store="results")  # doctest: +SKIP
"""

from collections.abc import Callable

import numpy as np
import optuna

from flowstudy.sweep.store.failures import SweepError

from .cells import Cell
from .engine import run
from .ranking import last_rows


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
    """
    for start in range(0, trials, group):
        asked = [study.ask() for _ in range(min(group, trials - start))]
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
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
