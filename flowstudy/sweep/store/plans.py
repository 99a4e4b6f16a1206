"""Plans that a store has been asked for, as `<root>/plans/<hash>.json`: `status` compares them with what is there."""

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowstudy.refusal import printable
from flowstudy.seal import sealed_json, unsealed_json
from flowstudy.sweep.cells import CELL_FIELDS, Cell, digest
from flowstudy.whole_file import sweep_leftovers

from .files import files_in, read_from_store
from .store import Store

DEFAULTS = Cell()
NO_PLAN = (ValueError, TypeError, KeyError, RecursionError)  # errors from a file that does not hold a plan
TABLE = re.compile(r"[a-z_]+-[0-9a-f]{16}")  # name of a table, which cannot lead to a folder outside of the store


@dataclass(frozen=True)
class Record:
    """A plan that `run` was called with.

    Attributes:
        measure, options: as given to `run`, defaults filled in.
        table: of the store.
        cells: the whole plan, each cell once, whatever part of it a shard runs.
        asked: UTC time of the first run.
    """

    measure: str
    options: dict
    table: str
    cells: list[Cell]
    asked: str


def remember_plan(store: Store, measure: str, options: dict, table: str, cells: Sequence[Cell]) -> None:
    cells = list(dict.fromkeys(cells))
    path = store.root / "plans" / f"{digest([table, *sorted(cell.key for cell in cells)])}.json"
    if not is_kept(path):
        asked = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        plan = {"measure": measure, "options": options, "table": table, "asked": asked,
                "cells": [settings(cell) for cell in cells]}
        store.write(path, sealed_json(plan))
    sweep_leftovers(path.parent)


def is_kept(path: Path) -> bool:
    """Whether the plan is there as it was written."""
    try:
        read_record(path)
    except (FileNotFoundError, *NO_PLAN):
        return False
    return True


def remembered_plans(root: Path) -> dict[str, Record]:
    """The plans by name, in the order of their first run; files that hold no plan are left out with a warning.

    Raises:
        StoreError: one of them could not be read.
    """
    found = {}
    for path in files_in(root / "plans", ".json"):
        try:
            found[path.stem] = read_record(path)
        except NO_PLAN as error:
            warnings.warn(f"Store: {printable(path)} is not a plan that this version of flowstudy reads "
                          f"({printable(error)}); ignored.", stacklevel=2)
    return dict(sorted(found.items(), key=lambda item: item[1].asked))


def read_record(path: Path) -> Record:
    return checked_record(unsealed_json(read_from_store(path)))


def checked_record(plan: dict) -> Record:
    """The plan of a file, which may be anybody's: its table names a folder that will be read.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    record = Record(**(plan | {"cells": [Cell(**cell) for cell in plan["cells"]]}))
    if not isinstance(record.table, str) or not TABLE.fullmatch(record.table):
        raise ValueError(f"`table` must be a measurement, a hyphen and 16 hexadecimal digits, got {record.table!r}")
    kinds = {"measure": str, "options": dict, "asked": str}
    for name, kind in kinds.items():
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"`{name}` must be a {kind.__name__}, got {getattr(record, name)!r}")
    return record


def settings(cell: Cell) -> dict[str, object]:
    """The fields that tell a cell from `Cell()`."""
    return {name: value for name in CELL_FIELDS if (value := getattr(cell, name)) != getattr(DEFAULTS, name)}
