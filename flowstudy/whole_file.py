"""A file that is there whole or not at all, whenever the process is killed."""

import os
import socket
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name, then rename: nobody ever sees half a file, and after a power cut neither."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = temporary(path)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """Says whose it is: what a killed process left can be told from what a living one writes."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
