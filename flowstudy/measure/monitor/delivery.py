"""Delivery of a monitor's complete records: to the host, and from there to the table, the folder and the curves."""

import os
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch

from flowstudy.refusal import RefusalTypeError

from .kept import RecordFolder
from .norms import Layout
from .step_record import StepRecord, tables, was_left_out
from .watched import Watched

TOGETHER = 64  # records are stored in groups of this many where nothing is written; singly takes three times as long


@runtime_checkable
class ScalarWriter(Protocol):
    """The method of a TensorBoard SummaryWriter that the monitor uses."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...


class Numbers(NamedTuple):
    """A record's numbers on the host; they become a table when one is asked for."""

    step: int
    layout: Layout
    entries: Counter[int]
    values: array


class Delivery:
    """Fetches records without waiting for the device, and puts them where they belong once they have arrived.

    Under DistributedDataParallel only the first process writes to `store` and `writer`.  Where these fail the training
    goes on: it is told once, and the table has every record all the same.
    """

    def __init__(self, call: str, watched: Watched, store: str | os.PathLike[str] | None, writer: ScalarWriter | None):
        self.call, self.watched = call, watched
        self.folder = None if store is None or not first_process() else RecordFolder(call, store)
        self.writer = check_writer(call, writer) if first_process() else None
        self.fetching: list[StepRecord] = []      # complete; their numbers are on their way to the host
        self.numbers: list[Numbers] = []
        self.told: set[str] = set()  # which of the two has failed

    @property
    def is_written(self) -> bool:
        """Whether records are written to a folder or a writer as they come."""
        return self.folder is not None or self.writer is not None

    @property
    def frame(self) -> pd.DataFrame:
        """The table of all records so far."""
        self.deliver()
        return self.rows(self.numbers)

    def take(self, record: StepRecord) -> None:
        """Start to fetch a record that is complete."""
        record.norms.fetch()
        self.fetching.append(record)
        behind = len(self.fetching) - (record.norms.arrived is not None)  # the latest may still be on its way
        if behind >= (1 if self.is_written else TOGETHER):
            self.deliver(behind)

    def deliver_arrived(self) -> None:
        """Deliver the fetched records to `store` and `writer` if all have arrived, without waiting."""
        if self.fetching and self.is_written and self.fetching[-1].norms.ready():
            self.deliver()

    def deliver(self, number: int | None = None) -> None:
        """Move the first `number` fetched records (default all) into `self.numbers`, `store` and `writer`."""
        number = len(self.fetching) if number is None else number
        records, self.fetching = self.fetching[:number], self.fetching[number:]
        for record in records:
            layout, entries, values = record.norms.layout, record.entries, record.norms.read()
            if was_left_out(layout, values):
                continue
            if self.numbers and (layout, entries) == (self.numbers[-1].layout, self.numbers[-1].entries):
                layout, entries = self.numbers[-1].layout, self.numbers[-1].entries  # held once; worked out together
            self.numbers.append(Numbers(record.step, layout, entries, values))
            if self.is_written:
                self.write(self.rows(self.numbers[-1:]))

    def finish(self) -> None:
        """Deliver all, and try once more to write what could not be written."""
        self.deliver()
        if self.folder is not None and self.folder.unwritten:
            self.attempt(self.folder.write)

    def write(self, rows: pd.DataFrame) -> None:
        if self.folder is not None:
            self.attempt(lambda: self.folder.append(rows))
        if self.writer is not None and not self.attempt(
                lambda: write_curves(self.writer, rows, self.watched.quantities), "`writer`", "It gets no more curves"):
            self.writer = None

    def attempt(self, write: Callable[[], None], what: str = "`store`",
                then: str = "What it lacks is written when it can be") -> bool:
        """Whether the writing succeeded; whatever it raises must not end the training that is watched."""
        try:
            write()
        except Exception as error:
            if what not in self.told:
                self.told.add(what)
                warnings.warn(f"{self.call}: {what} must take the records, got {type(error).__name__}: {error}. "
                              f"{then}; training goes on, and `monitor.frame` has every record.", stacklevel=2)
            return False
        return True

    def rows(self, numbers: list[Numbers]) -> pd.DataFrame:
        layers, quantities = len(self.watched.names), self.watched.quantities
        values = [np.empty((0, layers, len(quantities)))]
        for _, alike in groupby(numbers, key=lambda one: (id(one.layout), id(one.entries))):
            _, layouts, entries, vectors = zip(*alike, strict=True)
            values.append(tables(self.watched, layouts[0], entries[0], np.array(vectors)))
        columns = np.concatenate(values).reshape(-1, len(quantities)).T
        return pd.DataFrame({
            "step": np.repeat(np.array([one.step for one in numbers], dtype=int), layers),
            "layer": np.tile(np.arange(1, layers + 1), len(numbers)),
            "module": self.watched.names * len(numbers),
            "type": self.watched.types * len(numbers),
        } | dict(zip(quantities, columns, strict=True)))


def write_curves(writer: ScalarWriter, rows: pd.DataFrame, quantities: Sequence[str]) -> None:
    for name in quantities:
        values = rows[name]
        curves = {"first layer": values.iloc[0], "median layer": values.median(), "last layer": values.iloc[-1]}
        for curve, value in curves.items():
            writer.add_scalar(f"{name}/{curve}", float(value), int(rows["step"].iloc[0]))


def first_process() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def check_writer(call: str, writer: ScalarWriter | None) -> ScalarWriter | None:
    if writer is not None and not callable(getattr(writer, "add_scalar", None)):
        raise RefusalTypeError(f"{call}: `writer` must have add_scalar, as a TensorBoard SummaryWriter does, "
                               f"got {type(writer).__name__}. For a folder of Parquet files pass store=.")
    return writer
