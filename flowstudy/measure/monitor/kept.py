"""Records written as they come into a folder of Parquet files, which is readable whenever the process ends."""

import errno
import io
import os
import warnings
from pathlib import Path

import pandas as pd

from flowstudy.arguments import check_path
from flowstudy.refusal import RefusalError, RefusalTypeError, printable
from flowstudy.seal import parquet_is_sealed, sealed_parquet
from flowstudy.whole_file import listed, read_whole, sweep_leftovers, write_whole

RECORDS = 64  # the most records in a file, since the file is rewritten with every record


class RecordFolder:
    def __init__(self, call: str, folder: str | os.PathLike[str]):
        if not isinstance(folder, str | os.PathLike):
            raise RefusalTypeError(f"{call}: `store` must be the path of a folder, got {type(folder).__name__}.")
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise RefusalError(f"{call}: `store` must be a new or empty folder, got {self.folder}, which is neither. "
                               f"{call}.load reads an earlier run; this one needs a folder of its own.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.is_mine = False  # once the first part has been begun by this process
        self.records: list[pd.DataFrame] = []
        self.full = 0
        self.unwritten = 0  # records that the folder did not take when it was tried last
        self.try_at = 0     # how many records there must be before it is tried again

    def append(self, rows: pd.DataFrame) -> None:
        """Keep a record.  After a failure it waits here, and the folder is tried again, more and more rarely.

        Raises:
            OSError: the folder is gone, full, or not to be written to; nothing of what it held is lost.
        """
        self.records.append(rows)
        self.unwritten += 1
        if len(self.records) >= self.try_at:
            self.write()

    def write(self) -> None:
        """Write all records that wait."""
        self.try_at = 2 * len(self.records)
        if not self.folder.is_dir():  # making a new folder would hide that earlier records are gone
            raise FileNotFoundError(errno.ENOENT, "the folder is gone", str(self.folder))
        path = self.folder / f"part-{self.full:06d}.parquet"
        self.begin(path)
        write_whole(path, sealed_parquet(pd.concat(self.records).to_parquet(index=False)))
        self.unwritten = self.try_at = 0
        if len(self.records) >= RECORDS:
            self.records, self.full = [], self.full + 1

    def begin(self, first: Path) -> None:
        """Refuse a folder that another monitor has begun since it was empty: each would keep half of its records."""
        if self.is_mine:
            return
        try:
            first.touch(exist_ok=False)
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, "another monitor writes there", str(self.folder)) from None
        self.is_mine = True


def load_records(call: str, folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The records of a folder; a part that is not what was written is left out, with a warning."""
    check_path(call, "folder", folder)
    sweep_leftovers(Path(folder))  # of a writer that was killed
    parts = [part for path in listed(Path(folder), ".parquet") if path.name.startswith("part-")
             and (part := read_part(call, path)) is not None]
    if not parts:
        raise RefusalError(f"{call}: `folder` must hold records of a monitor, got {folder}, which has none.")
    return pd.concat(parts, ignore_index=True)


def read_part(call: str, path: Path) -> pd.DataFrame | None:
    """Read one file, opened once only, since a writer that is at work may replace it meanwhile."""
    content = read_whole(path)
    if not content:  # begun, and nothing written yet
        return None
    try:
        parquet_is_sealed(content)
        return pd.read_parquet(io.BytesIO(content))
    except MemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        warnings.warn(f"{call}: {printable(path)} is left out ({printable(error)}); the other parts are there.",
                      stacklevel=4)
        return None
