"""Builds injector.c, starts a process under it, and in that process chooses the call that fails."""

import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("injector.c")
COMPILER = os.environ.get("CC", "cc")
OPERATIONS = ("open", "read", "write", "fsync", "rename", "mmap", "stat", "mkdir", "unlink")  # as injector.c has them
HALF, NOTHING = -1, -2  # a transfer of half the bytes, and an end of file where there is none
FAULTS = {
    "open": (errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ENOSPC),
    "read": (errno.EIO, errno.ESTALE, HALF, NOTHING),
    "write": (errno.EIO, errno.ENOSPC, errno.ESTALE, HALF),
    "fsync": (errno.EIO, errno.ENOSPC, errno.ESTALE),
    "rename": (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE),
    "mmap": (errno.EIO, errno.EACCES, errno.ENOMEM),
    "stat": (errno.EIO, errno.EACCES, errno.ESTALE),
    "mkdir": (errno.EIO, errno.ENOSPC, errno.EACCES),
    "unlink": (errno.EIO, errno.EACCES, errno.ESTALE),
}


def can_build() -> bool:
    return sys.platform == "linux" and shutil.which(COMPILER) is not None


def library() -> Path:
    """The compiled injector, built where this source is not built yet."""
    target = Path(tempfile.gettempdir()) / f"injector-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not target.exists():
        whole = target.with_suffix(f".{os.getpid()}")
        subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(whole), "-ldl"], check=True)
        whole.replace(target)
    return target


def under_injector(command: list[str], **options: object) -> subprocess.CompletedProcess:
    """Run a command whose disk fails when it is told to."""
    environment = os.environ | {"LD_PRELOAD": str(library()), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, **options)


@contextmanager
def failing(folder: Path, operation: str, fault: int = 0, call: int = 0, *, lasting: bool = False) -> Iterator[None]:
    """Within it the `call`-th such operation under the folder fails, and with `lasting` all that follow; 0: none."""
    injector = ctypes.CDLL(str(library()))
    injector.arm(os.fsencode(folder), OPERATIONS.index(operation), fault, ctypes.c_long(call), lasting)
    try:
        yield
    finally:
        injector.disarm()


def calls_of(folder: Path, operation: str, work: object) -> int:
    """How often the work does such a thing to files under the folder."""
    with failing(folder, operation):
        work()
    return ctypes.CDLL(str(library())).disarm()
