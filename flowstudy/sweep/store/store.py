"""Parquet tables of results.  Exists so that appends are atomic and a plan can ask what is missing."""

import errno
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from flowstudy.arguments import FLAG, MAPPING, NAME, check_frame, check_path, instance_of, optional, several, takes
from flowstudy.refusal import RefusalError, printable
from flowstudy.seal import parquet_is_sealed, sealed_parquet
from flowstudy.shown import as_html
from flowstudy.sweep.cells import CELL_FIELDS, LATER, Cell, digest
from flowstudy.whole_file import patiently, sweep_leftovers

from .files import (
    check_writable,
    files_in,
    read_from_store,
    set_aside,
    unreadable,
    write_to_store,
)
from .identity import check_mark, mark_of

SCHEMA = "flowstudy-1"  # version of the tables; raise it when older rows can no longer be read
OPTIONAL = {"gain": "float64", "gate_bias": "float64", "train_samples": "Int64"}  # dtypes, also where all are None
Read = TypeVar("Read")
READINGS = 3  # attempts at a file that gives other bytes each time it is read
of_cells = several(instance_of(Cell, "a Cell"), least=0)
KEPT = {"compression": "zstd", "write_page_checksum": True}


class NotStoredError(RefusalError, KeyError):
    """Rows were asked for that the store does not hold."""

    __str__ = Exception.__str__  # KeyError's own puts the message into quotes


class NewerError(ValueError):
    """A later version of flowstudy wrote this file: not damage."""


class Store:
    """A folder `<root>/<table>/<hash of the cells>.parquet`; each file holds whole cells, its footer says which.

    A file is written under a temporary name and then renamed: a killed run leaves no half-written table, and what
    is stored is never computed again.  Any number of processes may read and write at once, on a shared disk too: a
    cell that two of them stored is read once.  A file that is not what was written, by the digest in it, is set aside
    with a warning, never deleted; one of a later version is left alone.  A read that fails says nothing of the file: it
    is tried again, then a StoreError is raised, and everything stays as it is.
    `pandas.read_parquet(<root>/<table>)` and DuckDB read a table as it is.
    """

    @takes(root=check_path, moves_damaged=FLAG)
    def __init__(self, root: str | os.PathLike[str], *, moves_damaged: bool = True):
        """`moves_damaged`: whether damaged files are renamed; if not, they are reported and skipped."""
        self.root: Path = Path(root)
        self._moves_damaged = moves_damaged
        self._footers: dict[Path, tuple[tuple, dict | None]] = {}  # by file: its time and size, and what it said then
        self._swept: set[Path] = set()
        self._mark: str | None = None  # what tells this store from others, once something is to be written

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r}): {len(self.tables())} tables"

    def _repr_html_(self) -> str:
        return as_html(repr(self), self.tables())

    def tables(self) -> pd.DataFrame:
        """The tables of the store; only the files' footers are read.

        Returns:
            A row per table: `table`, its name; `files` and `cells`, the numbers of files and of stored cells.
        """
        files = {folder.name: len(files_in(folder, ".parquet")) for folder in files_in(self.root, "")}
        return pd.DataFrame([{"table": table, "files": number, "cells": len(self.stored(table))}
                             for table, number in files.items() if number],
                            columns=["table", "files", "cells"])

    @takes(table=NAME)
    def stored(self, table: str) -> dict[str, Path]:
        """The file that holds each stored cell's rows.

        Returns:
            The path of the file by the cell's key, for every cell in the table.
        """
        found: dict[str, Path] = {}
        for path, footer in self._files(table):
            for key in footer["cells"]:
                found.setdefault(key, path)
        return found

    @takes(cells=of_cells, table=NAME)
    def missing(self, cells: Iterable[Cell], table: str) -> list[Cell]:
        """The cells that the table does not hold.

        Returns:
            Those of `cells` without rows in the table, in their order.
        """
        stored = self.stored(table)
        return [cell for cell in cells if cell.key not in stored]

    @takes(cells=of_cells, table=NAME)
    def holds(self, cells: Sequence[Cell], table: str) -> bool:
        """Whether exactly these cells were stored together, for which one file is read instead of all.

        Returns:
            True if the table has a file with these cells and no others.
        """
        return self._footer(self.path(cells, table)) is not None

    @takes(cells=of_cells, table=NAME)
    def path(self, cells: Sequence[Cell], table: str) -> Path:
        """The file for the rows of these cells; the same cells have the same file, so nothing is stored twice.

        Returns:
            Its path, whether or not the file exists.
        """
        return self.root / table / f"{digest([SCHEMA, *(cell.key for cell in cells)])}.parquet"

    @takes(table=NAME)
    def prepare(self, table: str) -> None:
        """Make the table's folder and remove temporary files of killed writers; StoreError if it takes no files."""
        check_writable(self.root / table)
        self.hold()
        sweep_leftovers(self.root / table)
        self._swept.add(self.root / table)

    @takes(mark=optional(NAME))
    def hold(self, mark: str | None = None) -> str:
        """From now on refuse to write if the folder is no longer this store, as told by its mark.

        Args:
            mark: of the store that is meant (see `flowstudy.sweep.store.identity`); None is the present one.

        Returns:
            The mark.
        """
        self._mark = mark or self._mark or mark_of(self.root)
        self.check_held()
        return self._mark

    def check_held(self) -> None:
        """Raise StoreError if the folder is no longer the store that `hold` was called for."""
        if self._mark is not None:
            check_mark(self.root, self._mark)

    @takes(path=check_path, content=instance_of(bytes, "bytes"))
    def write(self, path: Path, content: bytes) -> None:
        """Write a file of the store, completely or not at all.

        Raises:
            StoreError: the folder takes no file, or is no longer the store that is held; nothing has changed.
        """
        if self.root not in Path(path).parents:
            raise RefusalError(f"Store.write: `path` must lie in the store {self.root}, got {str(path)!r}. "
                               "Store.path names the files of tables.")
        self.check_held()
        write_to_store(path, content)

    @takes(table=NAME, cells=several(instance_of(Cell, "a Cell")), rows=check_frame, provenance=MAPPING)
    def append(self, table: str, cells: Sequence[Cell], rows: pd.DataFrame, provenance: dict[str, Any]) -> Path:
        """Store the rows of whole cells.

        Args:
            rows: measured columns, and `place`, the position in `cells` of the cell that a row belongs to.
            provenance: how the rows were computed (versions, device, seconds), kept in the file's footer.

        Returns:
            The path of the file that was written.

        Raises:
            StoreError: the disk is full or the folder read-only; the table is as it was.
        """
        tidy = pd.DataFrame(fields_of(cells, rows["place"].to_numpy()) | dict(rows.drop(columns="place").items()))
        arrow = pa.Table.from_pandas(tidy, preserve_index=False)
        footer = {"schema": SCHEMA, "cells": [cell.key for cell in cells], "provenance": provenance}
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"flowstudy": json.dumps(footer)})
        written = io.BytesIO()
        pq.write_table(arrow, written, **KEPT)
        path = self.path(cells, table)
        if path.parent not in self._swept:
            sweep_leftovers(path.parent)
            self._swept.add(path.parent)
        self.write(path, sealed_parquet(written.getvalue()))
        return path

    @takes(cells=of_cells, table=NAME)
    def load(self, cells: Sequence[Cell], table: str) -> pd.DataFrame:
        """The rows of these cells.

        Returns:
            A frame in the order of `cells`: `cell` (its key), the measured columns, and every field of the cell.
        """
        stored = self.stored(table)
        order = {cell.key: i for i, cell in enumerate(cells)}
        absent = [key for key in order if key not in stored]
        if absent:
            raise NotStoredError(f"Store.load: {len(absent)} of {len(order)} cells are not in {self.root / table}. "
                                 "Run them first.")
        if not order:
            return pd.DataFrame(columns=["cell", *CELL_FIELDS])
        files = list(dict.fromkeys(stored[key] for key in order))
        tables = [self._read(path) for path in files]
        if any(read is None for read in tables):
            return self.load(cells, table)  # the cells of what was set aside are in another file, or missing
        rows = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        number = {path: i for i, path in enumerate(files)}
        owner = rows["cell"].map({key: number[stored[key]] for key in order})  # nan: a cell that was not asked for
        rows = rows[owner == np.arange(len(files)).repeat([len(read) for read in tables])]
        rows = rows.iloc[rows["cell"].map(order).argsort(kind="stable")].reset_index(drop=True)
        return rows[["cell", *(name for name in rows.columns if name not in ("cell", *CELL_FIELDS)), *CELL_FIELDS]]

    @takes(table=NAME)
    def provenance(self, table: str) -> list[dict[str, Any]]:
        """How the rows of a table were computed.

        Returns:
            A record for each file: versions, device, worker, time and seconds.
        """
        return [footer["provenance"] for footer in self.footers(table)]

    @takes(table=NAME)
    def footers(self, table: str) -> list[dict[str, Any]]:
        """The footers of a table's files that are in use.

        Returns:
            For each file a dict with `cells`, the keys of its cells, and `provenance`.
        """
        used = set(self.stored(table).values())
        return [footer for path, footer in self._files(table) if path in used]

    def _files(self, table: str) -> list[tuple[Path, dict]]:
        """Every file of the table that can be read, with what its footer says."""
        footers = [(path, self._footer(path)) for path in files_in(self.root / table, ".parquet")]
        return [(path, footer) for path, footer in footers if footer is not None]

    def _footer(self, path: Path) -> dict | None:
        """The file's footer, cached while the file does not change; None if it cannot be read."""
        try:
            state = patiently(path.stat)
        except (FileNotFoundError, NotADirectoryError):  # set aside by another process since it was listed
            return None
        except (OSError, MemoryError) as error:
            raise unreadable(error, path) from error
        state = (state.st_mtime_ns, state.st_size, state.st_ino)
        known = self._footers.get(path)
        if known is None or known[0] != state:
            footer = self._checked(path, lambda file: checked_footer(file.schema_arrow))
            known = self._footers[path] = (state, footer)
        return known[1]

    def _read(self, path: Path) -> pa.Table | None:
        rows = self._checked(path, lambda file: with_later_fields(file.read()))
        if rows is None and path in self._footers:
            self._footers[path] = (self._footers[path][0], None)  # where it could not be moved it is not read again
        return rows

    def _checked(self, path: Path, read: Callable[[pq.ParquetFile], Read]) -> Read | None:
        """The result of `read` on the file; None if the file is gone, of a later version, or damaged.

        A file counts as damaged only if two readings give the same wrong bytes.

        Raises:
            StoreError: it cannot be read, or reads otherwise each time.
        """
        before = None
        for _ in range(READINGS):
            try:
                content = read_from_store(path)
            except FileNotFoundError:
                return None
            try:
                return read(parquet_file(content))
            except MemoryError as error:
                raise unreadable(error, path) from error
            except NewerError as error:
                warnings.warn(f"Store: {printable(path)} is left alone: {printable(error)}. Its cells count as "
                              "missing; update flowstudy to read them.", stacklevel=3)
                return None
            except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
                if content == before:
                    warnings.warn(f"Store: {printable(path)} is not a table of flowstudy ({printable(error)}); "
                                  f"{self._put_away(path)}, its cells count as missing.", stacklevel=3)
                    return None
                before = content
        raise unreadable(OSError(errno.EIO, "it reads otherwise each time"), path)

    def _put_away(self, path: Path) -> str:
        """Set a damaged file aside where that may be done; what was done, in words."""
        if not self._moves_damaged:
            return "ignored"
        aside = set_aside(path)
        return "ignored, as it cannot be moved" if aside is None else f"set aside as {printable(aside.name)}"


def fields_of(cells: Sequence[Cell], place: np.ndarray) -> dict[str, object]:
    """Columns that repeat each cell's key and fields on every row of it."""
    columns: dict[str, object] = {"cell": np.array([cell.key for cell in cells], dtype=object)[place]}
    for name in CELL_FIELDS:
        values = [getattr(cell, name) for cell in cells]
        typed = pd.array(values, dtype=OPTIONAL[name]) if name in OPTIONAL else np.array(
            values, dtype=object if isinstance(values[0], str) else None)
        columns[name] = typed[place]
    return columns


def parquet_file(content: bytes) -> pq.ParquetFile:
    """The table, after its digest; without one, from an earlier version, its pages' checksums and what pandas needs."""
    sealed = parquet_is_sealed(content)
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    if not sealed:
        file.schema_arrow.empty_table().to_pandas()
    return file


def checked_footer(schema: pa.Schema) -> dict:
    footer = json.loads((schema.metadata or {}).get(b"flowstudy", "{}"))
    if "schema" not in footer:
        raise ValueError("something else wrote it")
    if footer["schema"] != SCHEMA:
        mine, its = (re.fullmatch(r"flowstudy-(\d+)", str(name)) for name in (SCHEMA, footer["schema"]))
        kind = NewerError if its and int(its[1]) > int(mine[1]) else ValueError
        raise kind(f"its schema is {footer['schema']}, this version reads {SCHEMA}")
    if not all(isinstance(key, str) for key in footer["cells"]) or "cell" not in schema.names:
        raise ValueError("it does not say whose rows it has")
    return footer


def with_later_fields(rows: pa.Table) -> pa.Table:
    """Rows of a file that was written before Cell had all its fields: those have their defaults."""
    for name, default in LATER.items():
        if name not in rows.column_names:
            rows = rows.add_column(CELL_FIELDS.index(name) + 1, name, pa.array([default] * len(rows)))
    return rows
