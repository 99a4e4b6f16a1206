"""Where a run goes on after it was killed: one file, whole or not there."""

import io
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowstudy.whole_file import write_whole


class Checkpoint:
    """A file that is written anew every so many seconds, and gone when the run is done.

    Args:
        path: of the file; its folder is made when there is something to write.
        seconds: the least time between two writes; 0 writes whenever asked.
        key: what the run is, a string or a list of them. A file of another run is set aside, never loaded.
        write: (path, content) into a file that appears whole or not at all.
    """

    def __init__(self, path: str | os.PathLike[str], seconds: float = 60.0, key: str | list[str] = "",
                 write: Callable[[Path, bytes], object] = write_whole):
        self.path: Path = Path(path)
        self.seconds: float = seconds
        self.key: str | list[str] = key
        self.write: Callable[[Path, bytes], object] = write
        self.written: float = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.written >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Tensors, numbers, strings, and lists and dicts of them."""
        content = io.BytesIO()
        torch.save({"key": self.key, "state": state}, content)
        self.write(self.path, content.getvalue())
        self.written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """What was saved last, on the CPU; None where there is nothing, or nothing that can be used."""
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            if saved["key"] != self.key:
                raise ValueError("it belongs to another run")
            return saved["state"]
        except Exception as error:  # whatever a damaged file makes torch.load raise
            aside = self.path.with_name(self.path.name + ".unreadable")
            self.path.replace(aside)
            warnings.warn(f"Checkpoint: {self.path} cannot be used ({error}); set aside as {aside.name}, its run "
                          "starts again.", stacklevel=2)
            return None

    @staticmethod
    def key_of(path: Path) -> str | list[str] | None:
        """What the run of this file is; None where it cannot be read."""
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["key"]
        except Exception:  # whatever a damaged file makes torch.load raise; `load` sets it aside when its run comes
            return None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

