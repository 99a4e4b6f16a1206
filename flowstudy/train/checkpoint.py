"""Where a run goes on after it was killed: the last state that was written, and the one before it."""

import contextlib
import io
import os
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowstudy.arguments import check_path, takes
from flowstudy.seal import sealed_zip, zip_is_sealed
from flowstudy.whole_file import read_whole, remove, sweep_leftovers, write_whole


class Checkpoint:
    """A file that is written anew every so many seconds, and gone when the run is done.

    Its digest is checked when it is read; the one before it lies beside it, as <name>.before, should it be damaged.

    Args:
        path: of the file; its folder is made when there is something to write.
        seconds: the least time between two writes; 0 writes whenever asked.
        key: what the run is, a string or a list of them. A file of another run is set aside, never loaded.
        write, read: (path, content) into a file that appears whole or not at all, and all of it back.  What they raise
            is raised: a file that cannot be read is not a damaged one.
    """

    @takes(path=check_path)
    def __init__(self, path: str | os.PathLike[str], seconds: float = 60.0, key: str | list[str] = "",
                 write: Callable[[Path, bytes], object] = write_whole, read: Callable[[Path], bytes] = read_whole):
        self.path: Path = Path(path)
        self.seconds: float = seconds
        self.key: str | list[str] = key
        self.write: Callable[[Path, bytes], object] = write
        self.read: Callable[[Path], bytes] = read
        self.written: float = time.monotonic()

    def due(self) -> bool:
        """Whether `seconds` have passed since the last write, or since the Checkpoint was made.

        Returns:
            True or False.
        """
        return time.monotonic() - self.written >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, and keep the file before it as <name>.before.

        Args:
            state: tensors, numbers, strings, and lists and dicts of them.
        """
        content = io.BytesIO()
        torch.save({"key": self.key, "state": state}, content)
        with contextlib.suppress(OSError):  # there is none yet; or the folder takes no files, which `write` will say
            self.path.replace(before(self.path))
        self.write(self.path, sealed_zip(content.getvalue()))
        self.written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Read the state that was saved last, or the one before it where the last is damaged.

        Returns:
            The state, its tensors on the CPU; None where there is none that can be used.  A file that is damaged or of
            another run is renamed to <name>.unreadable, with a warning.
        """
        for path, otherwise in ((self.path, "its run goes on from the one before, or starts again"),
                                (before(self.path), "its run starts again")):
            try:
                content = self.read(path)
            except FileNotFoundError:
                continue
            try:
                saved = contents(content)
                if saved["key"] != self.key:
                    raise ValueError("it belongs to another run")
                return saved["state"]
            except MemoryError:
                raise
            except Exception as error:  # whatever a damaged file makes torch.load raise
                aside = path.with_name(path.name + ".unreadable")
                with contextlib.suppress(OSError):  # in a folder that takes no files, which `save` will say
                    path.replace(aside)
                warnings.warn(f"Checkpoint: {path} cannot be used ({error}); set aside as {aside.name}, {otherwise}.",
                              stacklevel=2)
        return None

    @takes(path=check_path)
    @staticmethod
    def key_of(path: Path, read: Callable[[Path], bytes] = read_whole) -> str | list[str] | None:
        """Which run a checkpoint file is of.

        Returns:
            The key of the file, or of the one before it; None where neither can be read.
        """
        for one in (Path(path), before(Path(path))):
            with contextlib.suppress(Exception):  # whatever a damaged file makes torch.load raise; `load` will say so
                return contents(read(one))["key"]
        return None

    def finish(self) -> None:
        """What was saved last is the result: it stays, and nothing is left beside it."""
        remove(before(self.path))
        sweep_leftovers(self.path.parent)

    def remove(self) -> None:
        remove(self.path)
        remove(before(self.path))


def before(path: Path) -> Path:
    return path.with_name(path.name + ".before")


def contents(content: bytes) -> dict[str, Any]:
    """What the file holds, after its digest; without one, from an earlier version, after the archive's checksums."""
    if not zip_is_sealed(content) and (name := zipfile.ZipFile(io.BytesIO(content)).testzip()) is not None:
        raise ValueError(f"{name} in it is not what was written")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
