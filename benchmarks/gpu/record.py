"""The results, written to disk after every part, and the time that is left."""

import contextlib
import json
import signal
import tarfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from flowstudy.whole_file import write_whole

NAME, STORE = "records.json", "store.tgz"
SHARE = 0.25  # of the time left, for one part
Rows = list[dict]


class Late(BaseException):
    """Not an Exception: `run` takes those for failures of a net, and goes on with the others."""


class Record:
    """The parts of one call: each has rows or an error, and the seconds that it took.

    Args:
        folder: made where it is missing; `NAME` and `STORE` are its files, and no others are written.
        seconds: from now to the deadline.
        max_files: refused if fewer would be left for these two.
        max_mb: of all files together.
        profile: whose searches are trained.
    """

    def __init__(self, folder: Path, seconds: float, max_files: int, max_mb: float, profile: str):
        folder.mkdir(parents=True, exist_ok=True)
        others = {path.name for path in folder.iterdir()} - {NAME, STORE}
        if len(others) + 2 > max_files:
            raise ValueError(f"benchmarks.gpu: `--out` must have room for 2 files of {max_files}, got {folder} with "
                             f"{len(others)}. Pass an empty folder.")
        self.folder, self.max_mb, self.started, self.seconds = folder, max_mb, time.monotonic(), seconds
        self.parts: dict[str, dict] = {}
        self.profile = profile

    def left(self) -> float:
        """Seconds to the deadline."""
        return self.seconds - (time.monotonic() - self.started)

    def attempt(self, name: str, part: Callable[[], Iterable[dict]], share: float = SHARE) -> Rows:
        """The rows of a part: those that it has given when it fails or has taken more than `share` of the time left.
        The failure is recorded with them, and others follow.  A name that was there has the new rows added."""
        started, found = time.monotonic(), {"rows": []}
        print(f"{name} ({self.left():.0f} s left)", flush=True)
        try:
            with at_most(share * self.left()):
                for row in part():
                    found["rows"].append(row)
        except (Exception, Late) as error:
            found |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-4000:]}
            print(found["error"], flush=True)
        found["seconds"] = round(time.monotonic() - started, 1)
        self.parts[name] = joined(self.parts[name], found) if name in self.parts else found
        self.write()
        return found["rows"]

    def write(self) -> None:
        known = {"profile": self.profile, "parts": self.parts}
        write_whole(self.folder / NAME, json.dumps(known, indent=1, default=str).encode())

    def keep_store(self, store: Path) -> None:
        """Pack a store's folder, unless that makes too much of it."""
        packed, target = self.folder / f"{STORE}.new", self.folder / STORE
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(store, "results")
        size = packed.stat().st_size + (self.folder / NAME).stat().st_size
        if size > 1e6 * self.max_mb:
            packed.unlink()
            raise ValueError(f"benchmarks.gpu: `--max-mb` must have room for the store, got {self.max_mb} for "
                             f"{size / 1e6:.1f} MB. Allow more.")
        packed.replace(target)


def joined(one: dict, other: dict) -> dict:
    errors = {key: "\n".join(part[key] for part in (one, other) if key in part) for key in ("error", "traceback")}
    return {"rows": one["rows"] + other["rows"], "seconds": one["seconds"] + other["seconds"]} | {
        key: text for key, text in errors.items() if text}


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Late in the main thread where the block takes longer."""
    def late(*_: object) -> None:
        raise Late(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def records_in(folder: Path) -> dict:
    return json.loads((folder / NAME).read_text())


def read(folders: Sequence[Path]) -> str:
    """The tables of some folders' records, in Markdown; of a part that several have, the last one's."""
    parts = {name: part for folder in folders for name, part in records_in(folder)["parts"].items()}
    lines = ["# On a GPU", "", "By `python -m benchmarks.gpu`, written by its `--read`. Seconds are those a part took.",
             ""]
    for name, part in parts.items():
        lines += [f"## {name} ({part['seconds']:.0f} s)", ""]
        lines += table(part["rows"]) if part["rows"] else []
        lines += [f"Failed: {' '.join(part['error'].split())}", ""] if "error" in part else []
    return "\n".join(lines).rstrip() + "\n"


def table(rows: Rows) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(column)) for column in columns] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).replace("|", "/").split())
