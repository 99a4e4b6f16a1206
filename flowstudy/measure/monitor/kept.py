"""Records kept as they come: a folder of Parquet files that is whole whenever the process ends."""

import os
from pathlib import Path

import pandas as pd

from flowstudy.whole_file import write_whole

RECORDS = 64  # in a file; a file is written anew with every record


class RecordFolder:
    def __init__(self, call: str, folder: str | os.PathLike[str]):
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"{call}: `store` must be the path of a folder, got {type(folder).__name__}.")
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{call}: `store` must be a new or empty folder, got {self.folder}, which is neither. "
                             f"{call}.load reads an earlier run; this one needs a folder of its own.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.records: list[pd.DataFrame] = []
        self.full = 0

    def append(self, rows: pd.DataFrame) -> None:
        self.records.append(rows)
        path = self.folder / f"part-{self.full:06d}.parquet"
        write_whole(path, pd.concat(self.records).to_parquet(index=False))
        if len(self.records) == RECORDS:
            self.records, self.full = [], self.full + 1


def load_records(call: str, folder: str | os.PathLike[str]) -> pd.DataFrame:
    paths = sorted(Path(folder).glob("part-*.parquet"))
    if not paths:
        raise ValueError(f"{call}: `folder` must hold records of a monitor, got {folder}, which has none.")
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
