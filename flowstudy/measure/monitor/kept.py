"""Records kept as they come: a folder of Parquet files that is whole whenever the process ends."""

import errno
import os
from pathlib import Path

import pandas as pd

from flowstudy.arguments import check_path
from flowstudy.refusal import RefusalError, RefusalTypeError
from flowstudy.whole_file import write_whole

RECORDS = 64  # in a file; a file is written anew with every record


class RecordFolder:
    def __init__(self, call: str, folder: str | os.PathLike[str]):
        if not isinstance(folder, str | os.PathLike):
            raise RefusalTypeError(f"{call}: `store` must be the path of a folder, got {type(folder).__name__}.")
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise RefusalError(f"{call}: `store` must be a new or empty folder, got {self.folder}, which is neither. "
                               f"{call}.load reads an earlier run; this one needs a folder of its own.")
        self.folder.mkdir(parents=True, exist_ok=True)
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
        """Everything that waits."""
        self.try_at = 2 * len(self.records)
        if not self.folder.is_dir():  # a new one would hide that earlier records are gone
            raise FileNotFoundError(errno.ENOENT, "the folder is gone", str(self.folder))
        path = self.folder / f"part-{self.full:06d}.parquet"
        write_whole(path, pd.concat(self.records).to_parquet(index=False))
        self.unwritten = self.try_at = 0
        if len(self.records) >= RECORDS:
            self.records, self.full = [], self.full + 1


def load_records(call: str, folder: str | os.PathLike[str]) -> pd.DataFrame:
    check_path(call, "folder", folder)
    paths = sorted(Path(folder).glob("part-*.parquet"))
    if not paths:
        raise RefusalError(f"{call}: `folder` must hold records of a monitor, got {folder}, which has none.")
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
