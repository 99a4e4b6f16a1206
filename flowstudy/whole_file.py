"""Files written completely or not at all.

This holds even if the process is killed while it writes.  Files are also read completely, or an error is raised.
"""

import contextlib
import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PAUSES = (0.05, 0.2, 0.8)  # seconds before a read that failed is tried again: a network disk may be away for a moment
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # of a folder, where the system has no such thing
LEFT_BY = re.compile(rf"\.{re.escape(socket.gethostname())}\.(\d+)(\.[0-9a-f]+)?\.tmp$")
Read = TypeVar("Read")


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename, so that nobody ever sees half a file, not even after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary(path)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        remove(unfinished)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Keep a rename over a power cut, where the system can."""
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def temporary(path: Path) -> Path:
    """A temporary name with the host and the process in it, so that files of killed processes can be recognised.

    The last part is random, since containers may share host names and process numbers, and threads share both.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def sweep_leftovers(folder: Path) -> None:
    """Remove temporary files of processes of this machine that are no more; what cannot be removed waits for the next.
    """
    with contextlib.suppress(OSError):
        for path in listed(folder, ".tmp"):
            left = LEFT_BY.search(path.name)
            if left and int(left[1]) != os.getpid() and not process_lives(int(left[1])):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file that nobody needs, if it is there; if that fails it stays, and a later call of `sweep_leftovers`
    tries again."""
    with contextlib.suppress(OSError):
        path.unlink()


def process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_whole(path: Path) -> bytes:
    """All of a file.

    Raises:
        FileNotFoundError: there is none.
        OSError, MemoryError: it could not be read, also after some pauses; that says nothing of what is in it.
    """
    return patiently(lambda: content_of(path))


def content_of(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read()
        size = os.fstat(file.fileno()).st_size
    if len(content) < size:
        raise OSError(errno.EIO, f"only {len(content)} of {size} bytes could be read", str(path))
    return content


def listed(folder: Path, ending: str) -> list[Path]:
    """The files of a folder whose names have this ending, sorted; empty where there is no folder.

    `Path.glob` is not used, because it treats a folder that cannot be read as an empty one.

    Raises:
        OSError: it could not be read, also after some pauses.
    """
    try:
        names = patiently(lambda: [path.name for path in folder.iterdir()])
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names) if name.endswith(ending)]


def patiently(read: Callable[[], Read]) -> Read:
    """The result of `read`, which is tried again after longer and longer pauses if it fails."""
    for pause in PAUSES:
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except (OSError, MemoryError):
            time.sleep(pause)
    return read()
