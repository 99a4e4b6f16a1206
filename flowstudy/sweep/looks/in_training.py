"""Trains a group of cells once, and calls each measurement at its own epochs and updates."""

from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch

from flowstudy.cuda_capture import CAPTURES
from flowstudy.data import Dataset
from flowstudy.sweep.cells import Cell
from flowstudy.sweep.cells_to_nets import stack_of
from flowstudy.sweep.plan_error import PlanError
from flowstudy.train import Checkpoint, Moment, RecordAt, Settings, train
from flowstudy.train.stacks.ensemble import runs_of

from .moment import CellsMoment
from .table import OF_TRAINING, Look

Wanted = Sequence[tuple[str, Look, dict]]  # a table of the store, what is measured for it, with which options
LOOKED_AT_ONCE = 20  # the most nets that a measurement gets at once
AT_THE_END = RecordAt(epochs=(-1,))


def measure_together(wanted: Wanted, cells: Sequence[Cell], data: Dataset, tick: Callable[[float], object],
                     checkpoint: Checkpoint | None = None) -> tuple[dict[str, pd.DataFrame], str]:
    """Train cells of one structure once, for all measurements.

    Returns:
        The rows of each table, and the backend that trained ("none" where nothing was trained).
    """
    precision = wanted[0][2].get("precision", OF_TRAINING["precision"])  # all agree
    recorder, backend = Recorder(wanted, cells, data), "none"
    if cells[0].epochs == 0:  # untrained nets are built only when a measurement asks for them
        recorder.look(0, 0.0, CellsMoment(cells, data, None, precision))
    else:
        backend = train(stack_of(cells, data), data, settings_of(cells, data, precision), tick, at=recorder.at,
                        observer=recorder, checkpoint=checkpoint).backend
    return {table: recorder.rows(table) for table, *_ in wanted}, backend


class Recorder:
    """The observer of a training: calls each measurement at its moments, and keeps the rows."""

    def __init__(self, wanted: Wanted, cells: Sequence[Cell], data: Dataset):
        self.cells, self.data, self.looks = cells, data, {}
        self.kept: dict[str, list[dict]] = {table: [] for table, *_ in wanted}
        for table, look, options in wanted:
            at = options.get("at")
            own = {name: value for name, value in options.items() if name not in OF_TRAINING}
            times = AT_THE_END if at is None else as_record_at(at)
            steps = times.updates(cells[0].epochs, updates_per_epoch(cells[0], data))
            self.looks[table] = look, own, at is not None, set(steps)
        self.at = RecordAt(steps=tuple(set().union(*(steps for *_, steps in self.looks.values()))))

    def __call__(self, moment: Moment) -> None:
        self.look(moment.step, moment.epoch, CellsMoment(self.cells, self.data, moment))

    def look(self, step: int, epoch: float, moment: CellsMoment) -> None:
        """Call the measurements that are due at this step, on a few nets of one activation at a time.

        A measurement may take far more memory than a training step, and needs nets that share a forward pass.  It uses
        switches that the process has once: of groups that train side by side, one is measured at a time.
        """
        with CAPTURES:
            for first, last in looked_at_together(moment.cells):
                part = moment.part(first, last)
                for table, (look, options, dated, steps) in self.looks.items():
                    if step in steps:
                        rows = look(part, self.data, **options)
                        when = {"epoch": epoch, "step": step} if dated else {}
                        self.kept[table].append(rows.assign(place=rows["place"] + first, **when).to_dict("list"))

    def state(self) -> dict:
        return self.kept

    def restore(self, state: dict) -> None:
        self.kept = state

    def rows(self, table: str) -> pd.DataFrame:
        return pd.concat([pd.DataFrame(rows) for rows in self.kept[table]], ignore_index=True)


def looked_at_together(cells: Sequence[Cell]) -> Iterator[tuple[int, int]]:
    """Ranges (first, last + 1) of cells that are measured together: of one activation, at most `LOOKED_AT_ONCE`."""
    for _, alike in runs_of([cell.activation for cell in cells]):
        for first in range(alike.start, alike.stop, LOOKED_AT_ONCE):
            yield first, min(first + LOOKED_AT_ONCE, alike.stop)


def as_record_at(at: object) -> RecordAt:
    """A RecordAt, or its fields as a mapping."""
    try:
        return at if isinstance(at, RecordAt) else RecordAt(**at)
    except TypeError:
        raise PlanError(f"run: `at` must be a RecordAt, or a mapping of `epochs` and `steps`, got {at!r}.") from None


def settings_of(cells: Sequence[Cell], data: Dataset, precision: str) -> Settings:
    columns = [torch.tensor([getattr(cell, name) for cell in cells], dtype=torch.float64, device=data.x_train.device)
               for name in ("learning_rate", "momentum", "decay")]
    first = cells[0]
    return Settings(*columns, first.epochs, first.batch_size, first.order_seed, precision)


def updates_per_epoch(cell: Cell, data: Dataset) -> int:
    return -(-len(data.x_train) // cell.batch_size)
