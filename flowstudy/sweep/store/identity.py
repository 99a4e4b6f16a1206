"""The identity of a store's folder: an empty file in it, `.store-<random>`, whose name no other store has.

A run remembers that name.  If the folder was moved or its disk has gone away, the run stops instead of making a new
folder at the same path.
"""

import errno
import secrets
from pathlib import Path

from flowstudy.whole_file import patiently

from .files import StoreError, explained, files_in, unreadable

MARK = ".store-"


def mark_of(root: Path) -> str:
    """The store's mark; the first of them where two processes have made one at once.

    Raises:
        StoreError: it has none, and its folder takes none.
    """
    marks = [path.name for path in files_in(root, "") if path.name.startswith(MARK)]
    if marks:
        return min(marks)
    mark = MARK + secrets.token_hex(8)
    try:
        (root / mark).touch()
    except OSError as error:
        raise explained(error, root) from error
    return mark


def check_mark(root: Path, mark: str) -> None:
    """Refuse to go on where the folder is not the store that it was.

    Raises:
        StoreError: the mark is gone, or the folder cannot be read.
    """
    try:
        patiently((root / mark).stat)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(errno.ENOENT, f"Store: `store` must stay where it is while a run writes to it, got {root}, "
                                       "which is gone or another folder by now. What was stored is in the store that "
                                       "the run began with: put it back, or pass its new path, and run again."
                         ) from error
    except OSError as error:
        raise unreadable(error, root) from error
