"""Parquet tables of results.  Exists so that appends are atomic and a plan can ask what is missing."""

import json
import os
import socket
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .cells import CELL_FIELDS, LATER, Cell, digest

SCHEMA = "flowstudy-1"  # raise it when rows of an older version can no longer be read as this one's
OPTIONAL = {"gain": "float64", "gate_bias": "float64", "train_samples": "Int64"}  # typed also where all are None


class Store:
    """A folder `<root>/<table>/<hash of the cells>.parquet`; each file holds whole cells, its footer says which.

    A file is written under a temporary name and then renamed: a killed run leaves no half-written table, and what
    is stored is never computed again.  A file that cannot be read is set aside with a warning, never deleted.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)

    def stored(self, table: str) -> dict[str, Path]:
        """Which file holds each stored cell's rows, by the cell's key."""
        found: dict[str, Path] = {}
        for path in sorted((self.root / table).glob("*.parquet")):
            for key in self._keys(path):
                found.setdefault(key, path)
        return found

    def missing(self, cells: Iterable[Cell], table: str) -> list[Cell]:
        stored = self.stored(table)
        return [cell for cell in cells if cell.key not in stored]

    def append(self, table: str, cells: Sequence[Cell], rows: pd.DataFrame, provenance: dict) -> Path:
        """Store the rows of whole cells; `rows` has a column `cell`, the position in `cells` that a row belongs to."""
        settings = pd.DataFrame([{"cell": cell.key, **asdict(cell)} for cell in cells]).astype(OPTIONAL)
        tidy = settings.iloc[rows["cell"]].reset_index(drop=True).join(rows.drop(columns="cell").reset_index(drop=True))
        arrow = pa.Table.from_pandas(tidy, preserve_index=False)
        footer = {"schema": SCHEMA, "cells": [cell.key for cell in cells], "provenance": provenance}
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"flowstudy": json.dumps(footer)})
        folder = self.root / table
        folder.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(folder)
        path = folder / f"{digest(footer['cells'])}.parquet"
        unfinished = folder / f".{path.stem}.{socket.gethostname()}.{os.getpid()}.tmp"
        try:
            pq.write_table(arrow, unfinished, compression="zstd", write_page_checksum=True)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return path

    def load(self, cells: Sequence[Cell], table: str) -> pd.DataFrame:
        """The rows of these cells, in the order of the plan, every field of the cell beside every measured value."""
        stored = self.stored(table)
        order = {cell.key: i for i, cell in enumerate(cells)}
        absent = [key for key in order if key not in stored]
        if absent:
            raise KeyError(f"Store.load: {len(absent)} of {len(order)} cells are not in {self.root / table}. "
                           "Run them first.")
        files = dict.fromkeys(stored[key] for key in order)
        frames = []
        for path in files:
            try:
                frames.append(with_later_fields(pq.read_table(path, page_checksum_verification=True).to_pandas()))
            except (OSError, pa.ArrowInvalid) as error:  # the footer was whole, the rows are not
                set_aside(path, error)
                return self.load(cells, table)  # its cells are in another file, or missing
        kept = [frame[[stored[key] == path and key in order for key in frame["cell"]]]
                for path, frame in zip(files, frames, strict=True)]
        rows = pd.concat(kept, ignore_index=True)
        rank = rows["cell"].map(order)
        return rows.iloc[rank.argsort(kind="stable")].reset_index(drop=True)

    def provenance(self, table: str) -> list[dict]:
        """One record a file: versions, device, commit, seconds."""
        return [json.loads(pq.read_schema(path).metadata[b"flowstudy"])["provenance"]
                for path in dict.fromkeys(self.stored(table).values())]

    def _keys(self, path: Path) -> list[str]:
        try:
            footer = json.loads((pq.read_schema(path).metadata or {})[b"flowstudy"])
            if footer["schema"] != SCHEMA:
                raise ValueError(f"its schema is {footer['schema']}, this version reads {SCHEMA}")
            return footer["cells"]
        except FileNotFoundError:  # set aside by another process since it was listed
            return []
        except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
            set_aside(path, error)
            return []


def with_later_fields(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a file that was written before Cell had all its fields: those have their defaults."""
    for name, default in LATER.items():
        if name not in rows:
            rows.insert(CELL_FIELDS.index(name) + 1, name, default)
    return rows


def set_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(path.name + ".unreadable")
    path.replace(aside)
    warnings.warn(f"Store: {path} is not a table of flowstudy ({error}); set aside as {aside.name}, its cells "
                  "count as missing.", stacklevel=2)


def sweep_leftovers(folder: Path) -> None:
    """Remove temporary files of processes of this machine that are no more."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        pid = path.suffixes[-2][1:]
        if pid.isdigit() and int(pid) != os.getpid() and not process_lives(int(pid)):
            path.unlink(missing_ok=True)


def process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
