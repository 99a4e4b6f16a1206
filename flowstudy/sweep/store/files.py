"""Files of the store: written whole or not at all, set aside when damaged, never deleted.

A file that could not be read is not a damaged one: it stays where it is, and the run ends.
"""

import errno
import os
from pathlib import Path

from flowstudy.refusal import printable
from flowstudy.whole_file import listed, read_whole, remove, temporary, write_whole


class StoreError(OSError):
    """A file of the store could not be written or read; the files that it holds are unchanged."""


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PERMISSION = (errno.EROFS, errno.EACCES, errno.EPERM)


def write_to_store(path: Path, content: bytes) -> None:
    """`write_whole`, with an error in the user's words.

    Raises:
        StoreError: no space, no permission, or the system's own reason; the temporary file is gone.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise explained(error, path.parent) from error


def read_from_store(path: Path) -> bytes:
    """`read_whole`, with an error in the user's words.

    Raises:
        FileNotFoundError: it is not there, or no longer.
        StoreError: it could not be read, also after some pauses.
    """
    try:
        return read_whole(path)
    except FileNotFoundError:
        raise
    except (OSError, MemoryError) as error:
        raise unreadable(error, path) from error


def files_in(folder: Path, ending: str) -> list[Path]:
    """`listed`, with an error in the user's words.

    Raises:
        StoreError: the folder could not be read, also after some pauses.
    """
    try:
        return listed(folder, ending)
    except (OSError, MemoryError) as error:
        raise unreadable(error, folder) from error


def explained(error: OSError, folder: Path) -> StoreError:
    if error.errno in NO_SPACE:
        rule, way_out = "have space for the results", ("Nothing that it holds is lost: free some space and run "
                                                       "again, it goes on where it stopped.")
    elif error.errno in NO_PERMISSION:
        rule, way_out = "be a folder that can be written to", ("Its results can still be read; to add to them, change "
                                                               "its permissions or pass another `store`.")
    else:
        rule, way_out = "take the results", "Nothing that it holds is lost."
    return StoreError(error.errno, f"Store: `store` must {rule}, got {folder} ({os.strerror(error.errno or 0)}). "
                                   f"{way_out}")


def unreadable(error: OSError | MemoryError, path: Path) -> StoreError:
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else "out of memory"
    return StoreError(getattr(error, "errno", errno.ENOMEM) or errno.EIO,
                      f"Store: `store` must be readable, got {printable(path)} ({printable(reason)}). Nothing is lost "
                      "and nothing was changed: when it can be read again, run again.")


def check_writable(folder: Path) -> None:
    """Raise StoreError now rather than after hours of computing."""
    trial = temporary(folder / "writable")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
    except OSError as error:
        raise explained(error, folder) from error
    finally:
        remove(trial)


def set_aside(path: Path) -> Path | None:
    """Give a damaged file a name that no reader looks at; None where the folder does not allow it."""
    aside, number = path.with_name(f".{path.name}.unreadable"), 1
    try:
        while aside.exists():
            number += 1
            aside = path.with_name(f".{path.name}.{number}.unreadable")
        return path.rename(aside)
    except FileNotFoundError:  # another process was faster
        return aside
    except OSError:
        return None
