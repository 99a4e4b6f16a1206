"""Files of the store: written whole or not at all, set aside when damaged, never deleted."""

import errno
import os
import socket
from pathlib import Path

from flowstudy.whole_file import temporary, write_whole


class StoreError(OSError):
    """The store's folder cannot take what is to be written; what it held before is untouched."""


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


def check_writable(folder: Path) -> None:
    """Raise StoreError now rather than after hours of computing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary(folder / "writable").touch()
        temporary(folder / "writable").unlink()
    except OSError as error:
        raise explained(error, folder) from error


def set_aside(path: Path) -> Path | None:
    """Give a damaged file a name that no reader looks at; None where the folder does not allow it."""
    aside, number = path.with_name(f".{path.name}.unreadable"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f".{path.name}.{number}.unreadable")
    try:
        return path.rename(aside)
    except FileNotFoundError:  # another process was faster
        return aside
    except OSError:
        return None


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
