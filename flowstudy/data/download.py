"""Download one file from a mirror, with limits on its bytes and on the seconds without progress.

The file appears under its name only when it is complete and its checksum is right.
"""

import hashlib
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from flowstudy.progress import progress_bar
from flowstudy.refusal import RefusalError
from flowstudy.whole_file import temporary

MOST_BYTES = 2**28   # the largest official file has 170 MB
PATIENCE = 30.0      # seconds for an answer, for the next bytes, and for PACE of them
PACE = 2**14         # bytes
ABANDONED = 600.0    # seconds after which a temporary file is nobody's: one in use grows faster


class MissingPackageError(RefusalError, ModuleNotFoundError):
    """A package that downloads need is not installed."""


class WrongBytesError(ValueError):
    """A mirror serves something else, or not fast enough."""


def download(url: str, known: str, target: Path) -> str | None:
    """Fetch one file, which appears at `target` only whole and right. Returns why it failed, None if it did not.

    Args:
        known: `algorithm:hexdigest` of the official file.
    """
    requests = package("requests")  # pooch brings it
    import urllib3

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_abandoned(target)
        fetch(requests, url, known, target)
    except (requests.RequestException, urllib3.exceptions.HTTPError, WrongBytesError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"  # unreachable, error page, truncated, other
    except OSError as error:
        raise OSError(
            f"load_dataset: the cache {target.parent} must take {target.name}, got {type(error).__name__}: {error}. "
            f"Make room or permission, or set FLOWSTUDY_CACHE to another folder."
        ) from error
    return None


def fetch(requests: ModuleType, url: str, known: str, target: Path) -> None:
    algorithm, unfinished = known.split(":")[0], temporary(target)
    digest = hashlib.new(algorithm, usedforsecurity=False)
    # identity: a server that compresses on the way would have the .gz unpacked in transit, and its progress miscounted
    answer = requests.get(url, stream=True, timeout=PATIENCE, headers={"Accept-Encoding": "identity"})
    try:
        with answer, unfinished.open("wb") as file:
            answer.raise_for_status()
            for part in body_of(answer, target.name):
                digest.update(part)
                file.write(part)
        if f"{algorithm}:{digest.hexdigest()}" != known:
            raise WrongBytesError(f"it must have {known}, and has {algorithm.upper()} {digest.hexdigest()}")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def body_of(answer: Any, name: str) -> Iterator[bytes]:
    """The body in pieces as it arrives; an error if it is longer than MOST_BYTES or slower than PACE allows."""
    promised = int(answer.headers.get("content-length", 0))
    size, marked, since = 0, 0, time.monotonic()
    with progress_bar(total=promised or None, desc=name, unit="B", unit_scale=True) as bar:
        while part := answer.raw.read1(2**16):  # the bytes at hand; requests raises after PATIENCE seconds without any
            size += len(part)
            if max(size, promised) > MOST_BYTES:
                raise WrongBytesError(f"it has more than {MOST_BYTES:,} bytes")
            if size - marked >= PACE:
                marked, since = size, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise WrongBytesError(f"{size - marked} bytes in {PATIENCE:g} s are no progress")
            bar.update(len(part))
            yield part
    if size < promised:
        raise WrongBytesError(f"IncompleteRead: {size} of {promised} bytes came")


def sweep_abandoned(target: Path) -> None:
    """Remove the temporary files of killed downloads: ours of this file, and pooch's, which earlier versions used."""
    for pattern in (f".{target.name}.*.tmp", "tmp*"):
        for path in target.parent.glob(pattern):
            if path.is_file() and time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)


def package(name: str) -> ModuleType:
    """Import a package that only downloads need; the error says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"load_dataset: the package {name} must be installed to download data sets, got none. Install it, "
            "or set FLOWSTUDY_DATA to a folder that has the set."
        ) from error
