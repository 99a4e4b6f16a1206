"""Records of cells that could not be computed: their tracebacks are kept while the other cells go on."""

import json
import platform
import socket
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from flowstudy.sweep.cells import Cell
from flowstudy.whole_file import remove

from .files import files_in
from .store import Store


@dataclass(frozen=True)
class Failure:
    """One cell that could not be computed, as `<root>/failed/<table>/<key>.json` keeps it.

    Attributes:
        key: of the cell.
        cell: its fields.
        error: the last line of the traceback.
        traceback: the whole of it.
        when, host: UTC time and machine.
    """

    key: str
    cell: dict
    error: str
    traceback: str
    when: str
    host: str


class SweepError(RuntimeError):
    """Some cells failed; every other cell's rows are stored.

    Attributes:
        failures: one `Failure` a cell.
        rows: the frame that `run` would have returned, without the failed cells.
    """

    def __init__(self, message: str, failures: Sequence[Failure],
                 rows: pd.DataFrame | dict[str, pd.DataFrame]):
        super().__init__(message)
        self.failures: list[Failure] = list(failures)
        self.rows: pd.DataFrame | dict[str, pd.DataFrame] = rows


def failure(cell: Cell, error: BaseException | str) -> Failure:
    if isinstance(error, str):
        last = whole = error
    else:
        last = traceback.format_exception_only(error)[0].strip().partition("\n")[0]
        whole = "".join(traceback.format_exception(error))
    return Failure(cell.key, asdict(cell), last, whole, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                   socket.gethostname() or platform.node())


def folder_of(root: Path, table: str) -> Path:
    """The folder of a table's failures; it is outside of the table's own folder, which holds only Parquet files."""
    return root / "failed" / table


def remember(store: Store, table: str, failed: Iterable[Failure]) -> None:
    for one in failed:
        store.write(folder_of(store.root, table) / f"{one.key}.json", json.dumps(asdict(one), indent=1).encode())


def forget(root: Path, table: str, cells: Iterable[Cell]) -> None:
    """Remove the failures of cells that have been computed since."""
    failed = failed_keys(root, table)
    for cell in cells:
        if cell.key in failed:
            remove(folder_of(root, table) / f"{cell.key}.json")


def failed_keys(root: Path, table: str) -> set[str]:
    return {path.stem for path in files_in(folder_of(root, table), ".json")}


def raise_for(failures: Sequence[Failure], cells: int, root: Path, table: str,
              rows: pd.DataFrame | dict[str, pd.DataFrame]) -> None:
    """Raise one SweepError for all failures; nothing where there are none."""
    if failures:
        raise SweepError(f"run: {len(failures)} of {cells} cells failed, the first with `{failures[0].error}`. "
                         f"The rows of the other {cells - len(failures)} are stored; tracebacks are in "
                         f"{folder_of(root, table)}. Run again to try the failed cells once more.", failures, rows)
