"""Measurements of nets in training: what to look at, and when, while a group of cells trains once."""

import inspect
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch

from flowstudy.data import Dataset
from flowstudy.kinds import KINDS
from flowstudy.nets import initialize
from flowstudy.sweep.cells import Cell
from flowstudy.train import Checkpoint, History, Moment, RecordAt, Settings, Stack, stack_states, train

Tick = Callable[[int], object]
Look = Callable[..., pd.DataFrame]  # (moment, data, **options) -> rows with `cell`, the position in the stack
LOOKED_AT_ONCE = 20  # nets
AT_THE_END = RecordAt(epochs=(-1,))
OF_TRAINING = {"at": None, "precision": "float32"}  # options of every measurement here; at these values not in its name


class InTraining:
    """A measurement that `run` knows: rows of nets after their epochs, or at moments of their training.

    Args:
        look: what is measured at a moment; None is the loss by epoch, which training keeps anyway.
    """

    def __init__(self, look: Look | None):
        self.look = look
        own = list(inspect.signature(look).parameters.values())[2:] if look is not None else []
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [inspect.Parameter(name, keyword, default=value) for name, value in OF_TRAINING.items()
                  if look is not None or name != "at"]
        self.__signature__ = inspect.Signature([p.replace(kind=keyword) for p in own] + shared)
        self.__doc__ = (look or loss_rows).__doc__

    def __call__(self, cells: Sequence[Cell], data: Dataset, tick: Tick, *, checkpoint: Checkpoint | None = None,
                 **options: object) -> pd.DataFrame:
        return measure_together({"rows": (self, options)}, cells, data, tick, checkpoint)["rows"]


def measure_together(wanted: Mapping[str, tuple[InTraining, dict]], cells: Sequence[Cell], data: Dataset, tick: Tick,
                     checkpoint: Checkpoint | None = None) -> dict[str, pd.DataFrame]:
    """Rows of several measurements of nets that are trained once."""
    precision = {options.get("precision", "float32") for _, options in wanted.values()}
    looks = {name: (measurement.look, {k: v for k, v in options.items() if k != "precision"})
             for name, (measurement, options) in wanted.items() if measurement.look is not None}
    nets, first = build(cells, data), cells[0]
    observer = Observer(looks, data, first.epochs, updates_per_epoch(first, data))
    if first.epochs == 0 and len(looks) == len(wanted):  # nobody asks for a pass over the training set
        observer(Moment(0, 0.0, nets, None))
        return {name: observer.rows(name) for name in wanted}
    history = train(nets, data, settings_of(cells, data, precision.pop()), tick,
                    at=observer.at, observer=observer, checkpoint=checkpoint)
    return {name: loss_rows(history) if measurement.look is None else observer.rows(name)
            for name, (measurement, _) in wanted.items()}


class Observer:
    """Looks when each measurement wants it, and keeps the rows."""

    def __init__(self, looks: Mapping[str, tuple[Look, dict]], data: Dataset, epochs: int, per_epoch: int):
        self.looks, self.data = {}, data
        self.kept: dict[str, list[dict]] = {name: [] for name in looks}
        for name, (look, options) in looks.items():
            at = options.get("at")
            own = {key: value for key, value in options.items() if key != "at"}
            times = AT_THE_END if at is None else as_record_at(at)
            self.looks[name] = look, own, at is not None, set(times.updates(epochs, per_epoch))
        steps = set().union(*(steps for *_, steps in self.looks.values()))
        self.at = RecordAt(steps=tuple(steps)) if steps else None

    def __call__(self, moment: Moment) -> None:
        for name, (look, options, dated, steps) in self.looks.items():
            if moment.step in steps:
                rows = in_parts(look, moment, self.data, options)
                if dated:
                    rows = rows.assign(epoch=moment.epoch, step=moment.step)
                self.kept[name].append(rows.to_dict("list"))

    def state(self) -> dict:
        return self.kept

    def restore(self, state: dict) -> None:
        self.kept = state

    def rows(self, name: str) -> pd.DataFrame:
        return pd.concat([pd.DataFrame(rows) for rows in self.kept[name]], ignore_index=True)


def in_parts(look: Look, moment: Moment, data: Dataset, options: dict) -> pd.DataFrame:
    """Nets trained together are looked at a few at a time: a look may take far more memory than a step."""
    frames = []
    for first in range(0, len(moment.stack), LOOKED_AT_ONCE):
        part = slice(first, first + LOOKED_AT_ONCE)
        stack = Stack(moment.stack.template, {name: value[part] for name, value in moment.stack.state.items()})
        rows = look(moment._replace(stack=stack, loss=None if moment.loss is None else moment.loss[part]), data,
                    **options)
        frames.append(rows.assign(cell=rows["cell"] + first))
    return pd.concat(frames, ignore_index=True)


def as_record_at(at: object) -> RecordAt:
    """A RecordAt, or its fields as a mapping."""
    try:
        return at if isinstance(at, RecordAt) else RecordAt(**at)
    except TypeError:
        raise ValueError(f"run: `at` must be a RecordAt, or a mapping of `epochs` and `steps`, got {at!r}.") from None


def loss_rows(history: History) -> pd.DataFrame:
    """`epoch`, `loss` (mean training cross-entropy, nats per sample), `diverged` (first bad epoch, -1 if none)."""
    nets, epochs = history.loss.shape
    return pd.DataFrame({
        "cell": torch.arange(nets).repeat_interleave(epochs).numpy(),
        "epoch": torch.arange(epochs).repeat(nets).numpy(),
        "loss": history.loss.flatten().numpy(),
        "diverged": history.diverged.repeat_interleave(epochs).numpy(),
    })


def build(cells: Sequence[Cell], data: Dataset) -> Stack:
    """The cells' nets as they start: one module, initialised for each cell in turn (building modules is what costs)."""
    first = cells[0]  # of a group: all cells have its structure
    net = KINDS[first.net].net(data.x_train.shape[1], first.width, first.depth, data.classes, first.activation)
    states = []
    for cell in cells:
        if cell.gate_bias is not None:
            net.set_gate_bias(cell.gate_bias)
        initialize(net, cell.init, seed=cell.seed, gain=cell.gain, bias_var=cell.bias_var)
        states.append({name: value.detach().clone() for name, value in net.named_parameters()})
    return stack_states(net, states, data.x_train.device)


def settings_of(cells: Sequence[Cell], data: Dataset, precision: str) -> Settings:
    columns = [torch.tensor([getattr(cell, name) for cell in cells], dtype=torch.float64, device=data.x_train.device)
               for name in ("learning_rate", "momentum", "decay")]
    first = cells[0]
    return Settings(*columns, first.epochs, first.batch_size, first.order_seed, precision)


def updates_per_epoch(cell: Cell, data: Dataset) -> int:
    return -(-len(data.x_train) // cell.batch_size)
